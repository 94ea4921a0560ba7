"""What the catalogue says of deterministic models, by which their responses are cached."""

import asyncio
import time

import pytest

from gateway.core import Gateway
from gateway.errors import NoCapacity
from gateway.models.catalogue import Model
from gateway.settings import Settings
from gateway.upstream import server
from tests.gateway.fake_triton import FakeTriton, public


def _pipeline(name: str, **step_versions: int):
    """A deterministic ensemble of steps, each of a version; -1: the newest."""
    config = public(name, deterministic="true")
    for step, version in step_versions.items():
        config.ensemble_scheduling.step.add(model_name=step, model_version=version)
    return config


class Servers:
    """Two fakes, and the catalogue as a gateway reads it from them."""

    def __init__(self) -> None:
        self.fakes = (FakeTriton(), FakeTriton())

    async def start(self) -> None:
        addresses = [await fake.start() for fake in self.fakes]
        self.gateway = Gateway(Settings(replicas=tuple(addresses)))

    async def stop(self) -> None:
        await self.gateway.pool.close()
        for fake in self.fakes:
            await fake.stop()

    async def stop_second(self) -> None:
        """Stop it, and wait until the gateway knows."""
        await self.fakes[1].stop()
        async with asyncio.timeout(10):
            while self.gateway.pool.replicas[1].health:
                await self.gateway.pool.check()
                await asyncio.sleep(0.02)

    def serve(self, *configs, second=()) -> None:
        """The second one serves ``second`` as well."""
        for fake, added in zip(self.fakes, ((), second), strict=True):
            fake.configs |= {config.name: config for config in (*configs, *added)}

    async def model(self, name: str = "p") -> Model:
        await self.gateway.pool.check()
        self.gateway.catalogue = await self.gateway.reader.read(self.gateway.pool.replicas)
        return self.gateway.catalogue.models[name]


@pytest.fixture
async def servers():
    started = Servers()
    await started.start()
    yield started
    await started.stop()


async def test_a_deterministic_model_whose_config_is_late_stays_as_it_was(servers, monkeypatch):
    servers.serve(_pipeline("p"))
    before = await servers.model()
    assert before.revision and before.only_version == "1"
    as_of = servers.gateway.reader.as_of
    monkeypatch.setattr(server, "CONTROL_TIMEOUT_S", 1.0)
    for fake in servers.fakes:
        fake.takes_s["ModelConfig"] = 30
    assert await servers.model() == before
    assert await servers.model() == before
    assert servers.gateway.reader.as_of > as_of


async def test_one_that_only_a_dead_replica_has_stays_as_it_was_and_hinders_no_other(servers):
    servers.serve(_pipeline("p"), second=[_pipeline("x")])
    before = await servers.model("x")
    await servers.stop_second()
    servers.fakes[0].configs["new"] = public("new")
    after = await servers.model("x")
    assert after.revision == before.revision and after.versions == before.versions
    assert after.only_version == ""  # nobody knows what the replica has when it is back
    assert "new" in servers.gateway.catalogue.models


@pytest.mark.parametrize("call", ["RepositoryIndex", "ModelConfig"])
async def test_one_that_hangs_keeps_nothing_of_the_others_from_being_known(servers, call):
    """production-stack #749, once more: not only requests must not wait for it."""
    servers.serve(*(_pipeline(f"p{number}") for number in range(8)))
    before = await servers.model("p0")
    servers.fakes[0].takes_s[call] = 60
    servers.fakes[1].configs["new"] = public("new")
    began, as_of = time.monotonic(), servers.gateway.reader.as_of
    assert await servers.model("p0") == before
    assert "new" in servers.gateway.catalogue.models
    # Where the list took 5 s, and each of the eight configs.
    most_s = {"RepositoryIndex": 1, "ModelConfig": 2}[call] * server.CONTROL_TIMEOUT_S
    assert time.monotonic() - began < most_s
    if call == "RepositoryIndex":  # it may serve another version by now
        assert servers.gateway.reader.as_of == as_of
    servers.fakes[0].takes_s.clear()
    async with asyncio.timeout(4 * server.CONTROL_TIMEOUT_S):
        while not servers.gateway.reader.as_of > began:
            assert await servers.model("p0") == before


async def test_while_a_new_versions_config_is_late_nothing_is_cached(servers, monkeypatch):
    servers.serve(_pipeline("p"))
    before = await servers.model()
    monkeypatch.setattr(server, "CONTROL_TIMEOUT_S", 1.0)
    for fake in servers.fakes:
        fake.takes_s["ModelConfig"] = 30
        fake.versions["p"] = ("2",)
    assert (await servers.model()).revision == ""
    for fake in servers.fakes:
        fake.takes_s.clear()
    after = await servers.model()
    assert (after.revision, after.only_version) == (before.revision, "2")


async def test_a_catalogue_that_could_not_be_read_is_no_newer(servers):
    servers.serve(_pipeline("p"))
    await servers.model()
    as_of = servers.gateway.reader.as_of
    for fake in servers.fakes:
        await fake.stop()
    with pytest.raises(NoCapacity):
        await servers.model()
    assert servers.gateway.reader.as_of == as_of


async def test_a_new_version_of_a_step_is_another_revision(servers):
    """At any depth, if the ensemble takes the newest one."""
    servers.serve(_pipeline("p", inner=-1), _pipeline("inner", step=-1, pinned=1))
    servers.serve(public("step"), public("pinned"))
    revisions = []
    for step_versions in (("1",), ("1", "2"), ("2",), ("1",)):
        for fake in servers.fakes:
            fake.versions["step"] = step_versions
        revisions.append((await servers.model()).revision)
    assert revisions[0] == revisions[3] and len(set(revisions)) == 3
    assert revisions[1] == ""  # two are ready
    for fake in servers.fakes:
        fake.versions["pinned"] = ("1", "2")
    assert (await servers.model()).revision == revisions[0]


async def test_a_step_that_is_not_known_is_no_revision(servers):
    servers.serve(_pipeline("p", step=1))
    assert (await servers.model()).revision == ""


async def test_versions_that_differ_count_only_on_replicas_that_are_up(servers):
    servers.serve(_pipeline("p", step=-1), public("step"))
    servers.fakes[0].versions = {"p": ("2",), "step": ("2",)}
    model = await servers.model()
    assert (set(model.versions), model.only_version, model.revision) == ({"1", "2"}, "", "")
    await servers.stop_second()
    model = await servers.model()
    assert model.only_version == "2" and model.revision


async def test_short_requests_go_together_as_many_as_the_largest_step_has_instances(servers):
    pipeline = _pipeline("p", tokenize=1, engine=1)
    pipeline.max_batch_size = 8
    pipeline.parameters["tidegate.short_bytes"].string_value = "256"
    tokenize, engine = (public(name, internal="true") for name in ("tokenize", "engine"))
    engine.instance_group.add(count=2, gpus=[0, 1])
    engine.instance_group.add(count=1)
    servers.serve(pipeline, tokenize, engine)
    assert (await servers.model()).short == (256, 8, 5)
