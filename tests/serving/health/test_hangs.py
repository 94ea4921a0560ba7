"""A Triton or a model that hangs is killed and restarted; a busy one is left alone."""

import contextlib
import threading
import time

import psutil
import pytest
from tritonclient import grpc

from modelspec.parameters import GOLDEN_PARAMETER
from serving.health import health, pulse, work
from serving.health.events import Events
from serving.health.watch import Watcher
from serving.triton.golden import fault
from serving.triton.stubs import live_stubs
from tests.serving.small_pipeline import NAME
from tests.serving.small_server import ask, serving_small_pipeline

HEAL_S = 120.0


class Watching:
    """A watcher that is called as ``tidegate up`` calls it, and its messages."""

    def __init__(self, server):
        self.messages = []
        self.watcher = Watcher(server, [NAME], self.messages.append)

    def until(self, condition, timeout_s, what):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}; {self.messages}"
            self.watcher.check()
            time.sleep(0.1)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(pulse, "LOOK_EVERY_S", 0.3)
    monkeypatch.setattr(pulse, "RESPONSE_S", 0.7)
    monkeypatch.setattr(pulse, "SILENT_S", 4.0)
    monkeypatch.setattr(health, "PROBE_EVERY_S", 0.5)
    monkeypatch.setattr(health, "LATE_S", 1.0)
    monkeypatch.setattr(work, "STOPPED_S", 3.0)
    monkeypatch.setattr(pulse, "STOPPED_S", 1e9)  # judged by its answers, not by its state


@pytest.fixture
def server(tmp_path):
    with serving_small_pipeline(tmp_path) as running:
        yield running


@pytest.fixture
def watching(short, server):
    watching = Watching(server)
    yield watching
    watching.watcher.close()


def _answers(server) -> bool:
    with grpc.InferenceServerClient(server.control.address) as client:
        return ask(client) == 0


def test_a_triton_that_is_stopped_is_killed_and_started_again(server, watching):
    watching.until(lambda: watching.watcher._pulse._judged == server.pid, 60, "a first look")
    before = server.pid
    stubs = live_stubs(before)
    psutil.Process(before).suspend()
    watching.until(lambda: "Triton is serving again" in watching.messages, HEAL_S, "restart")
    assert any("Triton hangs (no answer to" in line for line in watching.messages)
    assert server.pid != before
    assert _answers(server)
    assert not {stub.pid for stub in stubs} & {stub.pid for stub in live_stubs(server.pid)}
    assert watching.watcher.events.counts["triton_hung", ""] == 1
    assert watching.watcher.events.counts["triton_restarted", ""] == 1


def test_a_triton_with_dead_streams_only_counts_as_dead(server, watching, monkeypatch):
    watching.until(lambda: watching.watcher._pulse._judged == server.pid, 60, "a first look")
    monkeypatch.setattr(server.control, "streams_respond", lambda timeout_s: False)
    watching.until(
        lambda: any("no answer to streams" in t for t in watching.messages), 60, "notice"
    )
    monkeypatch.undo()
    watching.until(lambda: "Triton is serving again" in watching.messages, HEAL_S, "restart")
    assert _answers(server)


def test_a_stopped_model_process_is_replaced(server, watching):
    watching.until(lambda: watching.watcher._pulse._judged == server.pid, 60, "a first look")
    pid = server.pid
    hung = [stub for stub in live_stubs(pid) if stub.model == "mood_onnx"]
    for stub in hung:
        psutil.Process(stub.pid).suspend()
    watching.until(lambda: f"revived {NAME}" in watching.messages, HEAL_S, "revival")
    assert server.pid == pid
    assert _answers(server)
    watching.until(lambda: not _stopped(hung), 60, "the end of what was stopped")


def test_a_model_that_is_only_busy_is_left_alone(short, tmp_path):
    slow = "self._number = lambda value, n=self._number: (time.sleep(0.4), n(value))[1]"
    with serving_small_pipeline(tmp_path, lambda repository: _slow(repository, slow)) as server:
        watching = Watching(server)
        served = len(_all_answers(server, 40, watching))
        assert served == 40
        watching.watcher.close()
        quiet = [t for t in watching.messages if "revived" in t or "answer" in t]
        assert not quiet
        versions = server.control.statistics(NAME)
        count = sum(version.inference_stats.success.count for version in versions)
        assert count >= 40  # the model was never reloaded


def _stopped(stubs) -> list[int]:
    pids = []
    for stub in stubs:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(stub.pid).status() == psutil.STATUS_STOPPED:
                pids.append(stub.pid)
    return pids


def _slow(repository, line):
    for path in (repository / "mood_onnx").glob("*/model.py"):
        path.write_text(path.read_text().replace("        pass\n", f"        {line}\n", 1))


def _all_answers(server, count, watching):
    """``count`` concurrent requests, each from its own client, while the watcher runs."""
    answers = []

    def call():
        with grpc.InferenceServerClient(server.control.address) as client:
            answers.append(ask(client))

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    watching.until(lambda: not any(t.is_alive() for t in threads), 120, "every answer")
    return answers


def test_nothing_ends_the_watcher_and_it_keeps_its_heartbeat(server, watching, monkeypatch):
    def fail(self):
        raise RuntimeError("fail on purpose")

    monkeypatch.setattr(Watcher, "_look", fail)
    before = time.time()
    watching.watcher.check()
    assert any("RuntimeError: fail on purpose" in line for line in watching.messages)
    page = (server.options.work_dir / "watch.prom").read_text()
    heartbeat = float(page.rpartition("timestamp_seconds ")[2])
    assert before - 1 <= heartbeat <= time.time()  # it may be in whole seconds


def test_a_stalled_watcher_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(pulse, "STALLED_S", 0.1)
    events = []
    stalled = pulse.Pulse(None, lambda: None, lambda *event: events.append(event))
    stalled.round_began = time.monotonic() - 1
    stalled._look_at_watcher()
    assert events[0][0] == "watcher_stalled"
    assert Events(tmp_path).render()


def test_a_golden_sample_that_cannot_be_used_is_a_fault_of_its_model(server):
    config = server.control.config(NAME)
    faults = []
    for text in ("{", "{}", '{"request": {"x": 1}, "expect": {"score": [NaN]}, "tolerance": 0.1}'):
        config.parameters[GOLDEN_PARAMETER].string_value = text
        faults.append(fault(server.control, NAME, config))
    assert all(text.startswith("has a golden sample that ") for text in faults), faults
    assert len(set(faults)) == 3
