"""A policy or key file that exists but cannot be read is logged once and reported, no more."""

import asyncio
import errno
import os
from contextlib import asynccontextmanager

import pytest

from gateway.access.control import AccessControl
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.supervision import Supervisor
from tests.gateway.settled import write_settled

TWO = '[tenants.a]\nmodels = ["x"]\n\n[tenants.b]\nmodels = ["y"]\n'


@asynccontextmanager
async def access_controlled(folder, keys):
    """The access control of a gateway with these keys, and what supervises it."""
    (folder / "keys.toml").write_text(keys)
    (folder / "pepper").write_bytes(b"p" * 32)
    settings = Settings(
        policy_file=folder / "gateway.toml",
        keys_file=folder / "keys.toml",
        pepper_file=folder / "pepper",
        state_folder=folder,
    )
    supervisor = Supervisor(lambda name: None)
    access_control = AccessControl(settings, supervisor, Metrics())
    await access_control.open()
    yield access_control, supervisor
    await access_control.close()


@pytest.fixture
async def running(tmp_path):
    write_settled(tmp_path / "gateway.toml", TWO)
    async with access_controlled(tmp_path, keys="") as (access_control, supervisor):
        yield tmp_path, access_control, supervisor


@pytest.mark.parametrize("name", ["keys.toml", "pepper"])
def test_keys_that_cannot_be_read_do_not_hold_up_the_policy(running, caplog, name):
    folder, access_control, supervisor = running
    (folder / name).rename(folder / "away")
    (folder / name).mkdir()
    (folder / "new").write_text('[tenants.a]\nmodels = ["x"]\n')
    (folder / "new").rename(folder / "gateway.toml")
    for _ in range(5):
        access_control.refresh()
    assert set(access_control.policy.current.rules.tenants) == {"a"}
    assert "keys.toml cannot be read" in supervisor.faults()["policy_files"]
    assert caplog.text.count("cannot be read") == 1
    (folder / name).rmdir()
    (folder / "away").rename(folder / name)
    access_control.refresh()
    assert supervisor.faults() == {}


def test_a_policy_that_cannot_be_read_leaves_the_one_before(running, caplog):
    folder, access_control, supervisor = running
    before = access_control.policy.current
    (folder / "gateway.toml").rename(folder / "away")
    (folder / "gateway.toml").mkdir()
    for _ in range(5):
        assert not access_control.refresh()
    assert access_control.policy.current is before
    assert "gateway.toml cannot be read" in supervisor.faults()["policy_files"]
    assert caplog.text.count("cannot be read") == 1
    (folder / "gateway.toml").rmdir()
    (folder / "away").rename(folder / "gateway.toml")
    access_control.refresh()
    assert supervisor.faults() == {}


async def test_keys_that_were_wrong_from_the_start_are_not_ready(tmp_path):
    async with access_controlled(tmp_path, keys="[keys.x") as (access_control, supervisor):
        for _ in range(3):
            access_control.refresh()
            assert "keys.toml cannot be read" in supervisor.faults()["policy_files"]
        (tmp_path / "keys.toml").write_text("")
        access_control.refresh()
        assert supervisor.faults() == {}


@pytest.mark.parametrize("name", ["keys.toml", "gateway.toml"])
async def test_the_event_loop_runs_while_a_changed_file_is_read(running, name):
    """The file is a pipe, whose only writer is the event loop: a reader that held it would never
    get to the end."""
    folder, access_control, _ = running
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refreshed = asyncio.create_task(access_control.refresh_off_loop())
    writer = await _opened_for_writing(folder / name)
    assert not refreshed.done()
    os.write(writer, content or b"# no keys")
    os.close(writer)
    await refreshed
    assert access_control.fault() == ""


async def _opened_for_writing(pipe):
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody has opened it for reading yet
                raise
        await asyncio.sleep(0.01)


def test_a_fallback_that_does_not_answer_for_a_tenant_is_named(running, caplog):
    folder, access_control, _ = running
    (folder / "new").write_text(f'{TWO}[pipelines.x]\nfallback = "z"\n# end\n')
    (folder / "new").rename(folder / "gateway.toml")
    for _ in range(3):
        access_control.refresh()
    assert caplog.text.count("z does not answer for tenants that may not use it: a;") == 1
