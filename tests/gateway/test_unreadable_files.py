"""A file of the policy that is there and cannot be read is said once and shown; no more stops."""

import pytest

from gateway.guard import Guard
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.supervision import Supervisor

TWO = '[tenants.a]\nmodels = ["x"]\n\n[tenants.b]\nmodels = ["y"]\n'


@pytest.fixture
async def running(tmp_path):
    (tmp_path / "gateway.toml").write_text(TWO)
    (tmp_path / "keys.toml").write_text("")
    (tmp_path / "pepper").write_bytes(b"p" * 32)
    settings = Settings(
        policy_file=tmp_path / "gateway.toml",
        keys_file=tmp_path / "keys.toml",
        pepper_file=tmp_path / "pepper",
        state_folder=tmp_path,
    )
    supervisor = Supervisor(lambda name: None)
    guard = Guard(settings, supervisor, Metrics())
    await guard.open()
    yield tmp_path, guard, supervisor
    await guard.close()


@pytest.mark.parametrize("name", ["keys.toml", "pepper"])
def test_keys_that_cannot_be_read_do_not_hold_up_the_policy(running, caplog, name):
    folder, guard, supervisor = running
    (folder / name).rename(folder / "away")
    (folder / name).mkdir()
    (folder / "new").write_text('[tenants.a]\nmodels = ["x"]\n')
    (folder / "new").rename(folder / "gateway.toml")
    for _ in range(5):
        guard.refresh()
    assert set(guard.policy.current.rules.tenants) == {"a"}
    assert "keys.toml cannot be read" in supervisor.faults()["policy_files"]
    assert caplog.text.count("cannot be read") == 1
    (folder / name).rmdir()
    (folder / "away").rename(folder / name)
    guard.refresh()
    assert supervisor.faults() == {}


def test_a_policy_that_cannot_be_read_leaves_the_one_before(running, caplog):
    folder, guard, supervisor = running
    before = guard.policy.current
    (folder / "gateway.toml").rename(folder / "away")
    (folder / "gateway.toml").mkdir()
    for _ in range(5):
        assert not guard.refresh()
    assert guard.policy.current is before
    assert "gateway.toml cannot be read" in supervisor.faults()["policy_files"]
    assert caplog.text.count("cannot be read") == 1
    (folder / "gateway.toml").rmdir()
    (folder / "away").rename(folder / "gateway.toml")
    guard.refresh()
    assert supervisor.faults() == {}


async def test_keys_that_were_wrong_from_the_start_are_not_ready(tmp_path):
    (tmp_path / "pepper").write_bytes(b"p" * 32)
    (tmp_path / "keys.toml").write_text("[keys.x")
    settings = Settings(
        keys_file=tmp_path / "keys.toml",
        pepper_file=tmp_path / "pepper",
        policy_file=tmp_path / "gateway.toml",
        state_folder=tmp_path,
    )
    supervisor = Supervisor(lambda name: None)
    guard = Guard(settings, supervisor, Metrics())
    await guard.open()
    try:
        for _ in range(3):
            guard.refresh()
            assert "keys.toml cannot be read" in supervisor.faults()["policy_files"]
        (tmp_path / "keys.toml").write_text("")
        guard.refresh()
        assert supervisor.faults() == {}
    finally:
        await guard.close()
