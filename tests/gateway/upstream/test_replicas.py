"""The pool: which replica gets a request, what is learnt about each, and changes of the list."""

import asyncio
import time
from unittest.mock import ANY

import pytest

from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    NoCapacity,
    ReplicaLost,
    TooLarge,
    UpstreamError,
)
from gateway.upstream.balancing import Health
from gateway.upstream.outliers import LEAST_WEIGHT, SLOW_START_S
from gateway.upstream.replicas import FEW_RETRIES, Replica, ReplicaPool
from tests.gateway.eventually import until


class Connection:
    """A connection whose state a test sets."""

    def __init__(self, address: str) -> None:
        self.address, self.closed = address, False
        self.connection = Health.UP
        self.live: bool | Exception = True
        self.index: dict[str, tuple[str, ...]] | Exception = {"m": ("1",)}
        self.checks = 0
        self.takes: list[asyncio.Event] = []  # a check waits for the next of these, and is late

    def health(self) -> Health:
        return self.connection

    async def is_live(self, timeout_s: float) -> bool:
        self.checks += 1
        if self.checks <= len(self.takes):
            await self.takes[self.checks - 1].wait()
            raise DeadlineExceeded("late")
        return _raise_or_return(self.live)

    async def ready_versions(self) -> dict[str, tuple[str, ...]]:
        return _raise_or_return(self.index)

    async def describe(self, method: str, model: str = "", version: str = "") -> str:
        _raise_or_return(self.live)
        return self.address

    async def close(self) -> None:
        self.closed = True


def _raise_or_return(value):
    if isinstance(value, Exception):
        raise value
    return value


@pytest.fixture
def pool():
    pool = ReplicaPool(Connection, 2)
    pool.apply(["a:1", "b:1"])
    return pool


def _chosen(pool: ReplicaPool, model: str = "", times: int = 40) -> set[str]:
    return {pool.permit(model).replica.address for _ in range(times)}


async def test_the_least_busy_gets_the_next_and_a_full_pool_refuses():
    pool = ReplicaPool(Connection, 1)
    pool.apply(["a:1", "b:1"])
    with pool.permit() as first, pool.permit() as second:
        assert {first.address, second.address} == {"a:1", "b:1"}
        with pytest.raises(NoCapacity, match="every replica is busy"):
            pool.permit()
    assert [replica.inflight for replica in pool.replicas] == [0, 0]


async def test_another_list_is_followed_without_breaking_what_is_under_way(monkeypatch):
    monkeypatch.setattr("gateway.upstream.replicas.RETIRED_S", 0.6)
    pool = ReplicaPool(Connection, 8)
    pool.apply(["a:1", "b:1"])
    kept = pool.replicas[1].upstream
    with pool.replicas[0].permit() as leaving:
        pool.apply(["b:1", "c:1"])
        assert [replica.upstream.address for replica in pool.replicas] == ["b:1", "c:1"]
        assert pool.replicas[0].upstream is kept
        await asyncio.sleep(0.7)
        assert not leaving.closed
    await asyncio.sleep(0.05)
    assert not leaving.closed  # the background may be asking it something
    async with asyncio.timeout(20):
        while not leaving.closed:  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(0.05)
    assert not kept.closed
    await pool.close()
    assert kept.closed


async def test_one_that_lost_its_connection_is_not_asked_from_then_on(pool):
    assert _chosen(pool) == {"a:1", "b:1"}
    pool.replicas[0].upstream.connection = Health.UNKNOWN
    assert _chosen(pool) == {"b:1"}
    pool.replicas[0].upstream.connection = Health.DOWN
    assert _chosen(pool) == {"b:1"}
    assert pool.replicas[0].reason == "cannot be reached"


async def test_with_nobody_there_it_is_said_at_once(pool):
    for replica in pool.replicas:
        replica.upstream.live = NoCapacity("gone")
    await pool.check()
    with pytest.raises(NoCapacity, match="no server can take this now") as caught:
        pool.permit()
    assert caught.value.retry_after_s == 1
    with pytest.raises(NoCapacity):
        await pool.describe("ModelConfig", "m")


async def test_one_that_is_back_is_asked_once_its_models_are_known(pool):
    first = pool.replicas[0]
    first.upstream.live = NoCapacity("gone")
    await pool.check()
    assert (first.health, first.reason) == (Health.DOWN, "cannot be reached")
    first.upstream.live, first.upstream.index = True, NoCapacity("not yet")
    await pool.check()
    assert first.health is Health.DOWN
    first.upstream.index = {}  # restarted, nothing loaded yet
    await pool.check()
    assert (first.health, first.reason) == (Health.UP, "serves no model yet")
    assert _chosen(pool, "m") == {"b:1"}
    first.index_read({"m": ("1",)})
    assert first.reason == ""


async def test_a_server_that_is_shutting_down_is_not_asked(pool):
    pool.replicas[0].upstream.live = False
    await pool.check()
    assert _chosen(pool) == {"b:1"}


async def test_an_answer_of_any_kind_is_life(pool):
    pool.replicas[0].upstream.live = UpstreamError("what is ServerLive?")
    for _ in range(5):
        await pool.check()
    assert pool.replicas[0].health is Health.UP


async def test_a_server_hangs_when_two_checks_and_requests_have_no_answer(pool):
    first = pool.replicas[0]
    first.upstream.live = DeadlineExceeded("late")
    await pool.check()
    assert first.upstream.checks == 2
    assert (first.health, first.reason) == (Health.DOWN, "does not respond")
    await pool.check()
    assert first.upstream.checks == 3  # what hangs already needs no second one
    first.upstream.live = True
    await pool.check()
    assert first.health is Health.UP


async def test_while_a_check_is_late_others_come_first_and_are_checked_on(pool):
    """It is known to hang two seconds after the first check, and asked less after one."""
    first, second = pool.replicas
    first.upstream.takes = [asyncio.Event(), asyncio.Event()]
    await pool.check(within_s=0.01)
    assert _chosen(pool) == {"a:1", "b:1"}
    first.upstream.takes[0].set()  # it was late
    await until(lambda: first.is_silent)
    assert first.health is Health.UP
    assert _chosen(pool) == {"b:1"}
    checks = second.upstream.checks
    await pool.check(within_s=0.01)
    assert (first.upstream.checks, second.upstream.checks) == (2, checks + 1)
    second.upstream.live = NoCapacity("gone")
    await pool.check(within_s=0.01)
    assert second.health is Health.DOWN
    assert _chosen(pool) == {"a:1"}  # there is no other
    first.ended("m", None)
    assert not first.is_silent
    first.upstream.takes[1].set()
    await pool.check()
    assert first.health is Health.UP
    await pool.close()


async def test_metadata_comes_from_one_whose_check_is_not_late(pool):
    first = pool.replicas[0]
    assert await pool.describe("ModelConfig", "m") == "a:1"
    first._late_since = time.monotonic()
    assert await pool.describe("ModelConfig", "m") == "b:1"


async def test_a_sequence_does_not_start_where_a_check_is_late(pool):
    first = pool.replicas[0]
    first.upstream.takes = [asyncio.Event(), asyncio.Event()]
    first.upstream.takes[0].set()
    await pool.check(within_s=0.01)
    await until(lambda: first.is_silent)
    assert {_home(pool, number, starts=True).address for number in range(20)} == {"b:1"}
    assert {_home(pool, number).address for number in range(20)} == {"a:1", "b:1"}
    await pool.close()


@pytest.mark.parametrize("error", [None, InvalidRequest("the model refused it")])
async def test_load_is_not_death(pool, error):
    """Late checks, but requests are answered meanwhile."""
    first = pool.replicas[0]

    async def is_live(timeout_s: float) -> bool:
        first.ended("m", error)
        raise DeadlineExceeded("late")

    first.upstream.is_live = is_live
    for _ in range(5):
        await pool.check()
        assert (first.health, first.is_silent) == (Health.UP, False)


async def test_a_request_that_ran_out_of_time_is_no_sign_of_life(pool):
    first = pool.replicas[0]
    first.upstream.live = DeadlineExceeded("late")
    for _ in range(2):
        await pool.check()
        first.ended("m", DeadlineExceeded("late"))
        first.ended("m", asyncio.CancelledError())
    assert first.health is Health.DOWN


async def test_one_that_refuses_at_once_does_not_look_least_busy(pool):
    first = pool.replicas[0]
    for _ in range(5):
        with pytest.raises(NoCapacity), first.permit("m"):
            raise NoCapacity("full")
    with pool.replicas[1].permit():
        assert _chosen(pool, "m") == {"b:1"}
        assert _chosen(pool, "n") == {"a:1"}  # another model is not full
    assert first.health is Health.UP  # it is not shut out: requests can be made to fail


async def test_one_that_says_too_large_is_asked_less(pool):
    first = pool.replicas[0]
    with pytest.raises(TooLarge), first.permit("m"):
        raise TooLarge("no memory")
    assert _chosen(pool, "m") == {"b:1"}
    assert first.responded["m"]  # it is there, all the same


@pytest.mark.parametrize(("answered", "expected"), [(False, {"b:1"}), (True, {"a:1", "b:1"})])
async def test_one_whose_model_hangs_is_asked_less(pool, answered, expected):
    first = pool.replicas[0]
    first.ended("m", None)  # long ago
    await asyncio.sleep(0.01)
    with pytest.raises(DeadlineExceeded), first.permit("m"):
        await asyncio.sleep(0.01)
        first.ended("m" if answered else "another", None)
        raise DeadlineExceeded("late")
    assert _chosen(pool, "m") == expected


async def test_refusals_are_forgotten(pool, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("gateway.upstream.replicas.time.monotonic", lambda: now[0])
    with pytest.raises(NoCapacity), pool.replicas[0].permit("m"):
        raise NoCapacity("full")
    assert _chosen(pool, "m") == {"b:1"}
    now[0] = 120.0
    assert _chosen(pool, "m") == {"a:1", "b:1"}


async def test_what_a_server_refused_as_it_went_is_forgotten_when_it_is_back(pool):
    first = pool.replicas[0]
    for _ in range(20):
        with pytest.raises(NoCapacity), first.permit("m"):
            raise NoCapacity("it is going")
    first.upstream.live = NoCapacity("gone")
    await pool.check()
    first.upstream.live = True
    await pool.check()
    assert first.state("m", "", time.monotonic()).failures == 0


async def test_what_is_known_of_a_removed_model_is_forgotten(pool):
    first = pool.replicas[0]
    for model in ("m", "gone"):
        with first.permit(model):
            pass
    first.index_read({"m": ("1",)})
    assert set(first.records) == set(first.responded) == {"m"}


async def test_a_model_that_is_new_on_a_server_starts_slowly(pool):
    """A server that is back is alive long before it has loaded its models."""
    first, now = pool.replicas[0], time.monotonic()
    first.index_read({"m": ("1",)})
    assert first.state("m", "", now).weight == 1.0  # the gateway's start is not the model's
    first.index_read({})
    first.index_read({"m": ("1",), "n": ("1",)})
    assert first.state("m", "", now).weight == first.state("n", "", now).weight == LEAST_WEIGHT
    first.index_read({"m": ("1", "2"), "n": ("1",)})
    assert first.state("m", "", now + SLOW_START_S + 1).weight == 1.0


async def test_a_request_that_was_refused_pays_for_no_retry():
    pool = ReplicaPool(Connection, 0)
    pool.apply(["a:1", "b:1"])
    for _ in range(100):
        with pytest.raises(NoCapacity):
            pool.permit("m")
    assert pool._retries == FEW_RETRIES


async def test_a_model_is_asked_where_it_is(pool):
    pool.replicas[0].versions = {"m": ("1",)}
    pool.replicas[1].versions = {"m": ("1", "2"), "n": ("1",)}
    assert _chosen(pool, "n") == {"b:1"}
    assert _chosen(pool, "m") == {"a:1", "b:1"}
    assert {pool.permit("m", "2").replica.address for _ in range(20)} == {"b:1"}
    assert await pool.describe("ModelConfig", "n") == "b:1"
    with pytest.raises(NoCapacity):
        pool.permit("o")


async def test_a_stream_stays_where_it_is_while_that_is_up(pool):
    first = pool.replicas[0]
    with first.permit():
        assert pool.permit("m", at=first.upstream).replica is first
        with first.permit(), pytest.raises(NoCapacity, match="busy"):
            pool.permit("m", at=first.upstream)
        first.upstream.connection = Health.UNKNOWN
        assert pool.permit("m", at=first.upstream).replica is pool.replicas[1]
        first.upstream.connection = Health.UP
        first.record("m").eject(time.monotonic())
        assert pool.permit("m", at=first.upstream).replica is pool.replicas[1]
        assert pool.permit("n", at=first.upstream).replica is first


def _lost(*, was_sent: bool) -> ReplicaLost:
    error = ReplicaLost("gone", retry_after_s=1)
    error.was_sent = was_sent
    return error


async def _call(pool, failures, *, may_repeat=True, model="m"):
    """The addresses that were asked; ``failures`` has what each asked in turn raises."""
    asked, left = [], list(failures)

    async def work(upstream):
        asked.append(upstream.address)
        if left:
            raise left.pop(0)

    try:
        await pool.call(model, "", work, may_repeat=may_repeat)
    except GatewayError as error:
        asked.append(error)
    return asked


@pytest.mark.parametrize(("was_sent", "may_repeat"), [(False, False), (False, True), (True, True)])
async def test_what_was_lost_is_sent_to_another_one_once(pool, was_sent, may_repeat):
    lost = [_lost(was_sent=was_sent), _lost(was_sent=was_sent)]
    asked = await _call(pool, lost[:1], may_repeat=may_repeat)
    assert sorted(asked) == ["a:1", "b:1"]
    asked = await _call(pool, lost, may_repeat=may_repeat)
    assert len(asked) == 3 and asked[2] is lost[1]
    assert [replica.inflight for replica in pool.replicas] == [0, 0]


@pytest.mark.parametrize(
    "error",
    [
        _lost(was_sent=True),  # and the model does not say that it may be asked again
        NoCapacity("it is full"),
        UpstreamError("it failed"),
        DeadlineExceeded("too late"),
    ],
)
async def test_nothing_else_is_sent_again(pool, error):
    assert await _call(pool, [error], may_repeat=False) == [ANY, error]


async def test_where_there_is_no_other_the_error_stands(pool):
    pool.replicas[0].versions, pool.replicas[1].versions = {"m": ("1",)}, {}
    error = _lost(was_sent=False)
    assert await _call(pool, [error]) == ["a:1", error]
    pool.replicas[1].versions = {"m": ("1",)}
    pool.replicas[1].upstream.connection = Health.DOWN
    assert await _call(pool, [error]) == ["a:1", error]


async def test_retries_are_no_more_than_a_fifth_of_the_requests(pool):
    """envoy #24937: retries multiplied the load on what had failed under load."""
    attempts = 0
    for _ in range(1000):
        attempts += len(await _call(pool, [_lost(was_sent=False)] * 2)) - 1
    assert 1190 <= attempts <= 1210


async def test_metadata_comes_from_any_that_answers(pool):
    assert await pool.describe("ModelConfig", "m") == "a:1"
    pool.replicas[0].upstream.live = NoCapacity("it died just now")
    assert await pool.describe("ModelConfig", "m") == "b:1"
    pool.replicas[1].upstream.live = DeadlineExceeded("it hangs")
    with pytest.raises(DeadlineExceeded):
        await pool.describe("ModelConfig", "m")


def _home(pool, sequence, *, begun_at: str = "", starts: bool = False) -> Replica:
    return pool.home(sequence, "m", "", begun_at=begun_at, starts=starts)


async def test_a_sequence_has_one_home_whatever_the_load(pool):
    homes = {sequence: _home(pool, sequence).address for sequence in range(20)}
    assert set(homes.values()) == {"a:1", "b:1"}
    with pool.replicas[0].permit():
        assert homes == {sequence: _home(pool, sequence).address for sequence in range(20)}
    assert homes == {sequence: _home(pool, sequence, starts=True).address for sequence in range(20)}


async def test_the_http_port_does_not_move_a_sequence(pool):
    other = ReplicaPool(Connection, 2)
    other.apply(["b:1/2", "a:1/2"])
    for sequence in range(20):
        assert _home(other, sequence).grpc_address == _home(pool, sequence).grpc_address


async def test_a_sequence_whose_home_is_gone_is_lost_and_never_moved(pool):
    homes = {sequence: _home(pool, sequence).address for sequence in range(20)}
    pool.replicas[0].upstream.connection = Health.DOWN
    for sequence, home in homes.items():
        if home == "b:1":
            assert _home(pool, sequence).address == "b:1"
            continue
        with pytest.raises(UpstreamError, match="start the sequence again"):
            _home(pool, sequence)
        with pytest.raises(UpstreamError, match="start the sequence again"):
            _home(pool, sequence, begun_at="a:1")
        assert _home(pool, sequence, starts=True).address == "b:1"
    pool.replicas[0].upstream.connection = Health.UP
    for sequence in homes:  # a sequence that was started elsewhere stays there
        assert _home(pool, sequence, begun_at="b:1").address == "b:1"


async def test_a_sequence_does_not_start_where_its_model_is_ejected(pool):
    pool.replicas[0].record("m").eject(time.monotonic())
    for sequence in range(20):
        assert _home(pool, sequence, starts=True).address == "b:1"
        assert _home(pool, sequence, begun_at="a:1").address == "a:1"


async def test_a_sequence_does_not_start_where_its_model_answers_wrongly(pool):
    first, second = pool.replicas
    first.probes["m"] = "answers its golden sample wrongly in y"
    second.record("m").eject(time.monotonic())  # a wrong answer is worse
    pool.drain({"b:1"})
    for sequence in range(20):
        assert _home(pool, sequence, starts=True) is second
        assert _home(pool, sequence, begun_at="a:1") is first


async def test_a_sequence_whose_home_is_not_listed_any_more_is_lost(pool):
    pool.apply(["b:1"])
    with pytest.raises(UpstreamError):
        _home(pool, 1, begun_at="a:1")


async def test_a_busy_home_is_no_reason_to_move(pool):
    home = _home(pool, 1)
    with home.permit(), home.permit(), pytest.raises(NoCapacity, match="try again"):
        _home(pool, 1)


async def test_a_start_with_nobody_there(pool):
    for replica in pool.replicas:
        replica.upstream.connection = Health.DOWN
    with pytest.raises(NoCapacity):
        _home(pool, 1, starts=True)
