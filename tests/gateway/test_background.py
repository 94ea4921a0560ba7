"""The catalogue and the golden samples over several replicas: which are probed, what is ready."""

import asyncio
import time

import pytest

from gateway.background import BUSY_S, LATE_S, LONGEST_BUSY_S, Background, readiness
from gateway.core import Gateway
from gateway.errors import NotFound
from gateway.settings import Settings
from gateway.upstream import server
from gateway.upstream.admission import FairQueue
from gateway.upstream.catalogue_reader import REREAD, CatalogueReader
from gateway.upstream.merging import Waits
from gateway.upstream.triton_times import Totals
from serving.triton.ports import free_ports
from tests.gateway.fake_triton import FakeTriton, failing, late, public, wrong


@pytest.fixture
async def pair():
    """Two fakes that serve ``p``, and a gateway on them."""
    fakes = FakeTriton(public("p")), FakeTriton(public("p"))
    addresses = [await fake.start() for fake in fakes]
    yield fakes, addresses
    for fake in fakes:
        await fake.stop()


@pytest.fixture
async def gateway(pair):
    _, addresses = pair
    gateway = Gateway(Settings(replicas=tuple(addresses), pipelines=("p",), max_inflight=1))
    yield gateway
    await gateway.pool.close()


class Clock:
    """The time of the gateway's own judgements, in place of the module ``time``."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in ("background", "upstream.replicas", "upstream.catalogue_reader"):
        monkeypatch.setattr(f"gateway.{module}.time", clock)
    return clock


async def _round(gateway: Gateway, previous: Background | None = None) -> dict[str, str]:
    """One round of all background work, continuing ``previous``; returns what is not ready then."""
    background = previous or Background(gateway)
    await background.check_replicas()
    await background.refresh_catalogue()
    await background.probe()
    if previous is None:
        background._cancel_probes()
    return {name: fault for name, fault in readiness(gateway).items() if fault}


async def test_every_replica_is_probed(pair, gateway):
    fakes, _ = pair
    assert await _round(gateway) == {}
    assert [fake.inferences for fake in fakes] == [1, 1]


@pytest.mark.parametrize("answer", [wrong(7.0), failing()])
async def test_a_replica_with_wrong_results_gets_no_requests_and_the_pipeline_is_ready(
    pair, gateway, answer
):
    fakes, addresses = pair
    fakes[0].answer = answer
    assert await _round(gateway) == {}
    assert {gateway.pool.permit("p").replica.address for _ in range(20)} == {addresses[1]}
    assert gateway.pool.replicas[0].probes["p"]
    fakes[0].answer = wrong(0.0)
    assert await _round(gateway) == {}
    assert not gateway.pool.replicas[0].probes["p"]


async def test_a_pipeline_that_nobody_answers_rightly_is_not_ready(pair, gateway):
    for fake in pair[0]:
        fake.answer = wrong(7.0)
    assert await _round(gateway) == {"p": "answers its golden sample wrongly in y"}


async def test_a_full_pool_is_not_an_unhealthy_one(pair, gateway):
    with gateway.pool.replicas[0].permit("p"), gateway.pool.replicas[1].permit("p"):
        assert await _round(gateway) == {}


async def test_a_probe_that_is_late_under_load_changes_nothing(pair, gateway, monkeypatch, clock):
    background = Background(gateway)
    assert await _round(gateway, background) == {}
    monkeypatch.setattr("gateway.background.LATE_S", 0.05)
    for fake in pair[0]:
        fake.answer = late(60)
    for _ in range(8):
        for replica in gateway.pool.replicas:
            replica.ended("p", None)  # a client has just received a response
        assert await _round(gateway, background) == {}
        clock.ahead_s += LONGEST_BUSY_S / 4
    # With no response for that long it is no longer load.
    clock.ahead_s += LONGEST_BUSY_S
    assert (await _round(gateway, background))["p"].startswith("does not answer its golden sample")
    background._cancel_probes()


async def test_a_late_probe_proves_nothing_of_what_was_never_proved(pair, gateway, monkeypatch):
    monkeypatch.setattr("gateway.background.LATE_S", 0.2)
    for fake in pair[0]:
        fake.answer = late(0.5)
    assert "p" in await _round(gateway)


async def test_one_that_completes_requests_of_others_is_healthy_though_it_never_answered_us(
    pair, gateway, monkeypatch, clock
):
    """A worker that starts under load, or beside other callers: Triton's own count shows it."""
    monkeypatch.setattr("gateway.background.LATE_S", 0.05)
    background = Background(gateway)
    await background.check_replicas()
    await background.refresh_catalogue()
    for fake in pair[0]:
        fake.answer, fake.completed = late(60), 7
    await background.probe()
    assert readiness(gateway)["p"] == "is being probed for the first time"
    for fake in pair[0]:
        fake.completed += 1
    await background.probe()
    assert readiness(gateway)["p"] == ""
    clock.ahead_s += LONGEST_BUSY_S  # nothing completes any longer: it hangs
    await background.probe()
    assert readiness(gateway)["p"] == "does not answer its golden sample in time"
    for fake in pair[0]:
        fake.completed += 1
    await background.probe()
    assert readiness(gateway)["p"] == ""
    background._cancel_probes()


async def test_a_first_answer_that_takes_longer_than_a_round_is_waited_for(
    pair, gateway, monkeypatch
):
    monkeypatch.setattr("gateway.background.LATE_S", 0.05)
    for fake in pair[0]:
        fake.answer = late(0.3)
    background = Background(gateway)
    await background.check_replicas()
    await background.refresh_catalogue()
    deadline = asyncio.get_running_loop().time() + 20
    while readiness(gateway)["p"]:
        assert asyncio.get_running_loop().time() < deadline
        await background.probe()
        await asyncio.sleep(0.05)
    assert all(fake.inferences <= 2 for fake in pair[0])  # no more than the next probe
    background._cancel_probes()


async def test_a_model_whose_probe_takes_long_is_probed_less_often(pair, gateway):
    for fake in pair[0]:
        fake.answer = late(0.2)
    background = Background(gateway)
    for _ in range(3):
        assert await _round(gateway, background) == {}
    assert [fake.inferences for fake in pair[0]] == [1, 1]
    for probe in background._probes.values():
        assert probe.pause_s == LATE_S
        probe.since -= LATE_S
    pair[0][0].answer = failing()
    await _round(gateway, background)
    assert [fake.inferences for fake in pair[0]] == [2, 2]
    assert gateway.pool.replicas[0].probes["p"]
    await _round(gateway, background)  # what has failed is tried in every round
    assert [fake.inferences for fake in pair[0]] == [3, 2]
    background._cancel_probes()


async def test_a_model_that_is_late_holds_up_no_other(pair, gateway, monkeypatch):
    fakes, _ = pair
    monkeypatch.setattr("gateway.background.LATE_S", 0.05)

    async def slow_p(request):
        await asyncio.sleep(60 if request.model_name == "p" else 0)
        return 0.0

    for fake in fakes:
        fake.configs["quick"] = public("quick")
        fake.answer = slow_p
    background = Background(gateway)
    await background.check_replicas()
    await background.refresh_catalogue()
    await background.probe()
    monkeypatch.setattr("gateway.background.LATE_S", 60)
    async with asyncio.timeout(40):
        for _ in range(5):
            await background.probe()  # nobody waits for ``p`` again
    assert gateway.probes["quick"] == ""
    background._cancel_probes()


async def test_it_is_known_since_when_every_replica_was_right(pair, gateway):
    """A late golden sample says nothing of what was answered meanwhile."""
    fakes, _ = pair
    background = Background(gateway)
    begun = time.monotonic()
    await _round(gateway, background)
    first = background._right_as_of()["p"]
    assert begun < first < time.monotonic()
    await _round(gateway, background)
    second = background._right_as_of()["p"]
    assert second > first
    fakes[1].answer, asked = wrong(7.0), time.monotonic()
    await _round(gateway, background)
    assert second <= background._right_as_of()["p"] < asked
    background._cancel_probes()


async def test_load_does_not_make_a_wrong_one_right(pair, gateway, monkeypatch):
    monkeypatch.setattr("gateway.background.LATE_S", 0.2)
    for fake in pair[0]:
        fake.answer = wrong(7.0)
    assert "p" in await _round(gateway)
    for fake, replica in zip(pair[0], gateway.pool.replicas, strict=True):
        fake.answer = late(0.5)
        replica.ended("p", None)
    assert "p" in await _round(gateway)


async def test_the_catalogue_is_what_all_serve_together(pair, gateway):
    fakes, addresses = pair
    fakes[1].configs["only_second"] = public("only_second")
    await _round(gateway)
    assert set(gateway.catalogue.models) == {"p", "only_second"}
    permits = {gateway.pool.permit("only_second").replica.address for _ in range(20)}
    assert permits == {addresses[1]}
    await fakes[1].stop()
    await asyncio.sleep(0.1)
    await _round(gateway)
    assert gateway.catalogue.model("only_second")  # a 503, not a 404
    del fakes[0].configs["p"]
    await _round(gateway)
    assert set(gateway.catalogue.models) == {"p", "only_second"}


async def test_a_model_that_all_have_unloaded_is_gone(pair, gateway):
    fakes, _ = pair
    for fake in fakes:
        fake.configs["gone"] = public("gone")
    await _round(gateway)
    for fake in fakes:
        del fake.configs["gone"]
    await _round(gateway)
    with pytest.raises(NotFound):
        gateway.catalogue.model("gone")


@pytest.mark.parametrize(
    "golden",
    [
        *("not JSON", "{", "", "{}", "[1]", "null", "[" * 100_000),
        '{"request": {"x": [[1]]}, "expect": {"y": [0]}, "tolerance": 0.1}',
        f'{{"request": {{"x": 1}}, "expect": {{"y": [1{"0" * 400}]}}, "tolerance": 0.1}}',
        f'{{"request": {{"x": 1}}, "expect": {{"y": [0]}}, "tolerance": 1{"0" * 400}}}',
    ],
    ids=range(10),
)
async def test_an_invalid_model_affects_no_other(pair, gateway, golden):
    for fake in pair[0]:
        fake.configs["bad"] = public("bad", golden=golden)
        fake.configs["worse"] = public("worse", endpoint="{}")
        fake.configs["worst"] = public("worst", endpoint="[" * 100_000)
    assert await _round(gateway) == {}
    assert "p" in gateway.catalogue.models
    assert set(gateway.reader.faults) == {"bad", "worse", "worst"}
    assert gateway.probes["bad"].startswith("has a golden sample that ")  # a verdict, not silence
    assert gateway.probes["p"] == ""


async def test_a_response_that_cannot_be_read_is_a_verdict(pair, gateway):
    for fake in pair[0]:
        fake.raw = b"cut"
    assert "unreadably in y" in (await _round(gateway))["p"]


async def test_a_dead_first_replica_costs_neither_catalogue_nor_readiness(pair):
    _, addresses = pair
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    gateway = Gateway(Settings(replicas=(dead, addresses[0]), pipelines=("p",)))
    try:
        assert await _round(gateway) == {}
        assert {gateway.pool.permit("p").replica.address for _ in range(20)} == {addresses[0]}
    finally:
        await gateway.pool.close()


async def test_nothing_to_serve_is_not_ready_even_if_nothing_is_asked_for(pair):
    fakes, addresses = pair
    fakes[0].configs.clear()
    gateway = Gateway(Settings(replicas=(addresses[0],)))
    try:
        assert await _round(gateway) == {"tidegate:replicas": "no model is being served"}
    finally:
        await gateway.pool.close()


async def test_nobody_to_ask_is_not_ready(pair):
    gateway = Gateway(Settings(replicas=(f"127.0.0.1:{free_ports(1)[0]}",)))
    try:
        assert await _round(gateway) == {"tidegate:replicas": "no Triton server can be reached"}
    finally:
        await gateway.pool.close()


async def test_a_catalogue_that_is_not_read_for_long_is_not_ready(pair, gateway, monkeypatch):
    assert await _round(gateway) == {}
    monkeypatch.setattr("gateway.background.STALE_S", 0.1)
    await asyncio.sleep(0.2)
    assert "no Triton server has listed its models" in readiness(gateway)["tidegate:replicas"]


async def test_a_server_too_busy_to_say_what_it_serves_but_not_to_serve_is_ready(
    pair, gateway, monkeypatch
):
    assert await _round(gateway) == {}
    monkeypatch.setattr("gateway.background.STALE_S", 0.1)
    for fake in pair[0]:
        fake.takes_s["RepositoryIndex"] = 30
    reading = asyncio.create_task(Background(gateway).refresh_catalogue())
    await asyncio.sleep(0.15)
    assert readiness(gateway) == {"p": ""}  # it is still waited for
    reading.cancel()
    monkeypatch.setattr(server, "CONTROL_TIMEOUT_S", 0.1)
    await Background(gateway).refresh_catalogue()
    assert readiness(gateway) == {"p": ""}  # none responded in time, but each answers its probes
    for replica in gateway.pool.replicas:
        replica.last_response -= BUSY_S
    assert "no Triton server has listed its models" in readiness(gateway)["tidegate:replicas"]


async def test_a_model_whose_config_is_late_is_served_as_it_was(pair, gateway, monkeypatch):
    await _round(gateway)
    before = gateway.catalogue.models["p"]
    monkeypatch.setattr(server, "CONTROL_TIMEOUT_S", 0.2)
    for fake in pair[0]:
        fake.takes_s["ModelConfig"] = 30
    await Background(gateway).refresh_catalogue()
    assert gateway.catalogue.models["p"] is before


async def test_a_large_catalogue_is_read_again_a_few_models_at_a_time():
    """A changed version is read at once, a config that changed alone in its turn."""
    names = [f"p{number:03}" for number in range(3 * REREAD)]
    fake = FakeTriton(*map(public, names))
    pool = Gateway(Settings(replicas=(await fake.start(),))).pool
    reader = CatalogueReader()
    try:
        await pool.check()
        catalogue = await reader.read(pool.replicas)
        assert sorted(catalogue.models) == names
        assert fake.configs_read == len(names)
        fake.configs[names[-1]].max_batch_size = 8
        for round_number in (2, 3):
            catalogue = await reader.read(pool.replicas)
            assert fake.configs_read == len(names) + (round_number - 1) * REREAD
        assert catalogue.models[names[-1]].max_batch_size == 8
        fake.configs["new"] = public("new")
        assert "new" in (await reader.read(pool.replicas)).models
    finally:
        await pool.close()
        await fake.stop()


@pytest.mark.parametrize(("waited_s", "is_limited"), [(0.0, False), (1.0, True)])
async def test_what_waits_here_to_be_sent_with_others_is_a_queue_too(
    pair, gateway, waited_s, is_limited
):
    """Triton's own is short then, however many wait: without it the limit would only grow, and the
    tenants' turns would mean nothing."""
    background = Background(gateway)
    await _round(gateway, background)

    class Http:
        def take_waits(self, model: str) -> Waits:
            assert model == "p"
            return Waits(10, 10 * waited_s)

        def close(self) -> None:
            pass

    async def read(wanted: object, now: float) -> dict[tuple[str, str], Totals]:
        return {(replica.address, "p"): Totals(10, 0.0, 0.1) for replica in gateway.pool.replicas}

    for replica in gateway.pool.replicas:
        replica.upstream.http_upstream = Http()
    background._triton_times.read = read
    queue = gateway.queues["p"] = FairQueue(2)
    before = queue.limit.value
    queue.peak = before
    await background.adjust_limits()
    assert (queue.limit.value < before) is is_limited
    background._cancel_probes()
