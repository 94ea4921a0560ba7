"""A restarted process compares gateway.toml with the policy that was in force before."""

import pytest

from gateway.__main__ import _check_policy
from gateway.access.control import AccessControl
from gateway.metrics import Metrics
from gateway.policy.gateway_toml import PolicyError
from gateway.policy.principal import ACTIONS, Grant, Principal
from gateway.policy.reload import PolicyFile
from gateway.settings import Settings
from gateway.supervision import Supervisor
from tests.gateway.settled import write_settled

TWO = '[tenants.a]\nmodels = ["x"]\n\n[tenants.b]\nmodels = ["y"]\n'


@pytest.fixture
def settings(tmp_path):
    """One policy is in force and saved."""
    settings = Settings(
        policy_file=tmp_path / "gateway.toml",
        keys_file=tmp_path / "keys.toml",
        pepper_file=tmp_path / "pepper",
        state_folder=tmp_path,
    )
    settings.policy_file.write_text(TWO)
    assert _restarted(settings).refresh()
    return settings


def _restarted(settings):
    return PolicyFile(settings.policy_file, last_good=settings.last_good_policy)


def test_only_its_owner_can_read_what_is_kept(settings):
    assert settings.last_good_policy.stat().st_mode & 0o777 == 0o600


def test_an_unchanged_file_is_what_was_kept(settings):
    policy = _restarted(settings)
    assert not policy.refresh()
    assert set(policy.current.rules.tenants) == {"a", "b"}


@pytest.mark.parametrize("text", ["", "# Rules of our gateway\n", "[tenants.a", None])
async def test_a_restarted_worker_keeps_the_rules_that_were_in_force(settings, text, caplog):
    if text is None:
        settings.policy_file.unlink()
    else:
        write_settled(settings.policy_file, text)
    with pytest.raises(PolicyError):
        _restarted(settings).refresh()
    access_control = AccessControl(settings, Supervisor(lambda name: None), Metrics())
    await access_control.open()
    try:
        assert set(access_control.policy.current.rules.tenants) == {"a", "b"}
        assert "the previous policy stays in force" in caplog.text
    finally:
        await access_control.close()


def test_what_a_changed_file_gives_more_waits_as_in_a_reload(settings):
    settings.policy_file.write_text(TWO.replace('"x"', '"x", "z"'))
    policy = _restarted(settings)
    assert policy.refresh()
    assert policy.pending_s > 0
    grant = Grant("a", ("user",), ("*",), ACTIONS)
    caller = Principal("k", "k", grant)
    assert policy.current.access.allowed(caller, "infer", "x")
    assert not policy.current.access.allowed(caller, "infer", "z")


def test_an_operators_own_start_takes_the_file_and_a_supervisors_does_not(settings):
    settings.policy_file.write_text("")
    _check_policy(settings, is_restarted=True)
    assert settings.last_good_policy.exists()
    _check_policy(settings, is_restarted=False)
    assert not settings.last_good_policy.exists()
    policy = _restarted(settings)
    policy.refresh()
    assert policy.current.rules.tenants == {}


def test_what_cannot_be_kept_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    (tmp_path / "gateway.toml").write_text(TWO)
    policy = PolicyFile(tmp_path / "gateway.toml", last_good=tmp_path / "file" / "saved")
    assert policy.refresh()
    assert "a restarted worker will not know the policy" in caplog.text


@pytest.mark.parametrize("text", ["[tenants.a", "# \xff", None])
async def test_that_there_was_no_file_is_known_to_a_restarted_worker(settings, text, caplog):
    """An invalid file that comes later is as harmless to it as to the one before it."""
    settings.policy_file.unlink()
    _check_policy(settings, is_restarted=False)
    assert not _restarted(settings).refresh()
    if text is not None:
        write_settled(settings.policy_file, text, encoding="latin-1")
    _check_policy(settings, is_restarted=True)
    access_control = AccessControl(settings, Supervisor(lambda name: None), Metrics())
    await access_control.open()
    try:
        assert access_control.policy.current.version == "default"
        assert ("the previous policy stays in force" in caplog.text) is (text is not None)
    finally:
        await access_control.close()


def test_an_operators_own_start_takes_no_wrong_file_for_none(settings):
    settings.policy_file.unlink()
    _check_policy(settings, is_restarted=False)
    assert not _restarted(settings).refresh()
    settings.policy_file.write_text("[tenants.a")
    with pytest.raises(PolicyError):
        _check_policy(settings, is_restarted=False)
