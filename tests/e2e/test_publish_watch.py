"""The watcher beside a real Triton: it heals what it can, and leaves healthy models alone."""

import contextlib
import os
import threading
import time

import psutil
import pytest

from serving.health import health, restart_backoff, watch
from serving.health.watch import Watcher
from serving.publish.publish import publish
from serving.publish.versions import switch_to
from serving.repository.model_repository import ModelRepository
from serving.triton.stubs import live_stubs
from tests.running import wait_until
from tests.serving.small_pipeline import MODELS, NAME, stage
from tests.serving.small_server import online, serving_small_pipeline, under_load


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving_small_pipeline(tmp_path_factory.mktemp("watch")) as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(health, "PROBE_EVERY_S", 0.2)
    monkeypatch.setattr(restart_backoff, "FIRST_PAUSE_S", 0.1)


@contextlib.contextmanager
def watching(server, *models):
    """A watcher that checks continuously, and its messages."""
    messages: list[str] = []
    watcher, stopped = Watcher(server, [NAME, *models], messages.append), threading.Event()

    def look() -> None:
        while not stopped.wait(0.05):
            watcher.check()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watcher, messages
    finally:
        stopped.set()
        thread.join()


def test_publishing_and_rolling_back_raise_no_alarm(server):
    """Old versions lose their processes, as they should."""
    with watching(server) as (watcher, messages), under_load(server), online(server) as target:
        publish(ModelRepository(stage(target.repository.path, 1)), MODELS, target)
        switch_to(target, NAME, 1)
        wait_until(lambda: len(live_stubs(server.pid)) == 3, 30, "the old version unloaded")
        time.sleep(1)
    assert messages == []
    assert not watcher.events.counts


def test_a_dead_process_is_revived_and_its_old_siblings_end(server, monkeypatch):
    monkeypatch.setattr(watch, "REST_S", 1.0)
    with watching(server) as (watcher, messages):
        victim = next(stub for stub in live_stubs(server.pid) if stub.model == "mood_onnx")
        psutil.Process(victim.pid).kill()
        wait_until(lambda: "revived mood_onnx" in messages, 30, "revival")
        wait_until(lambda: len(live_stubs(server.pid)) == 3, 30, "every process")
    assert watcher.events.counts["process_died", "mood_onnx"] == 1
    assert watcher.events.counts["healed", "mood_onnx"] == 1


def test_a_dead_process_is_noticed_without_a_failing_golden_sample(server, monkeypatch):
    """Every probe passes, including the one right after the death."""
    monkeypatch.setattr(watch, "REST_S", 1.0)
    monkeypatch.setattr(health, "PROBE_EVERY_S", 0)
    monkeypatch.setattr(health, "fault", lambda *arguments: "")  # every golden sample passes
    with watching(server, "mood_onnx") as (watcher, messages):
        victim = next(stub for stub in live_stubs(server.pid) if stub.model == "mood_onnx")
        psutil.Process(victim.pid).kill()
        wait_until(lambda: "revived mood_onnx" in messages, 30, "revival")
        wait_until(lambda: len(live_stubs(server.pid)) == 3, 30, "every process")
    assert ("recovered", "mood_onnx") not in watcher.events.counts


@pytest.fixture
def unhealthy(server, tmp_path):
    """A file that makes the published engine answer wrongly while it is newer than the engine."""
    path = tmp_path / "sick"
    with online(server) as target:
        publish(ModelRepository(stage(target.repository.path, 7, sick=str(path))), MODELS, target)
        yield path
        switch_to(target, NAME, None)


def test_a_model_that_answers_wrongly_is_reloaded(server, unhealthy):
    with watching(server) as (watcher, messages):
        unhealthy.touch()
        wait_until(lambda: f"revived {NAME}" in messages, 30, "healing")
    assert "answers its golden sample wrongly in score" in messages[0]
    assert watcher.events.counts["healed", NAME] == 1


def test_what_cannot_be_healed_is_reported_once_and_then_left_alone(server, unhealthy, monkeypatch):
    monkeypatch.setattr(restart_backoff, "ATTEMPTS", 2)
    with watching(server) as (watcher, messages):
        unhealthy.touch()
        os.utime(unhealthy, (time.time() + 10_000,) * 2)
        wait_until(lambda: any("cannot be healed" in line for line in messages), 40, "the report")
        before = {stub.pid for stub in live_stubs(server.pid)}
        time.sleep(2)
        assert {stub.pid for stub in live_stubs(server.pid)} <= before  # none was started
        unhealthy.unlink()
        wait_until(lambda: watcher.events.counts["recovered", NAME] == 1, 30, "recovery")
    assert sum("cannot be healed, 2 attempts failed" in line for line in messages) == 1
    assert watcher.events.counts["given_up", NAME] == 1
