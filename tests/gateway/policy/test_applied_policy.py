"""A command that changes gateway.toml waits until each worker of the gateway has it in force."""

import os

import pytest

from gateway.access.control import AccessControl
from gateway.metrics import Metrics
from gateway.policy.applied_policy import FOLDER, AppliedPolicy, in_force
from gateway.settings import Settings
from gateway.supervision import Supervisor
from serving.errors import ServingError
from tests.gateway.settled import settle
from tidegate.app import routes_file
from tidegate.app.routes_file import set_weights, wait_until_taken


@pytest.fixture
async def workers(tmp_path):
    """Two of them, with one policy file."""
    settings = Settings(
        policy_file=tmp_path / "gateway.toml",
        keys_file=tmp_path / "keys.toml",
        pepper_file=tmp_path / "pepper",
        state_folder=tmp_path,
    )
    set_weights(settings.policy_file, "mood", {"mood.v2": 10})
    settle(settings.policy_file)
    workers = [AccessControl(settings, Supervisor(lambda name: None), Metrics()) for _ in range(2)]
    for worker in workers:
        await worker.open()
    yield workers
    for worker in workers:
        await worker.close()


async def test_one_worker_that_has_it_is_not_enough(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(routes_file, "TAKEN_TIMEOUT_S", 0.3)
    path, (first, second) = tmp_path / "gateway.toml", workers
    wait_until_taken(path)
    set_weights(path, "mood", {})
    first.refresh()
    with pytest.raises(ServingError, match=rf"1 of 2 workers .*process {os.getpid()}\)"):
        wait_until_taken(path)
    second.refresh()
    wait_until_taken(path)


async def test_a_worker_that_has_ended_is_not_waited_for(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(routes_file, "TAKEN_TIMEOUT_S", 0.3)
    path, (first, second) = tmp_path / "gateway.toml", workers
    set_weights(path, "mood", {"mood.v2": 20})
    first.refresh()
    os.close(second._applied_policy._descriptor)  # as its end does, by kill -9 too
    second._applied_policy._descriptor = None
    wait_until_taken(path)
    assert len(list((tmp_path / FOLDER).iterdir())) == 1


def test_what_cannot_be_written_is_logged_once(tmp_path, caplog):
    (tmp_path / FOLDER).touch()
    taken = AppliedPolicy(tmp_path, tmp_path / "gateway.toml")
    for version in ("a" * 12, "b" * 12):
        taken.report(version)
    taken.close()
    assert caplog.text.count("do not wait for this worker") == 1
    assert in_force(tmp_path, tmp_path / "gateway.toml") == []
