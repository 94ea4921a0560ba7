"""A Triton or a model that hangs is ended and started again; one that is busy is left alone."""

import contextlib
import threading
import time

import psutil
import pytest
from tritonclient import grpc

from modelspec.golden import GOLDEN_PARAMETER
from serving import health, pulse, work
from serving.events import Events
from serving.golden import fault
from serving.stubs import live_stubs
from serving.watch import Watcher
from tests.serving.small_pipeline import NAME
from tests.serving.small_server import ask, serving_small_pipeline

HEAL_S = 40.0


class Watching:
    """A watcher that is called as ``tidegate up`` calls it, and what it told."""

    def __init__(self, server):
        self.told = []
        self.watcher = Watcher(server, [NAME], self.told.append)

    def until(self, condition, timeout_s, what):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}; {self.told}"
            self.watcher.check()
            time.sleep(0.1)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(pulse, "LOOK_EVERY_S", 0.3)
    monkeypatch.setattr(pulse, "ANSWER_S", 0.7)
    monkeypatch.setattr(pulse, "SILENT_S", 4.0)
    monkeypatch.setattr(health, "PROBE_EVERY_S", 0.5)
    monkeypatch.setattr(health, "LATE_S", 1.0)
    monkeypatch.setattr(work, "STOPPED_S", 3.0)
    monkeypatch.setattr(pulse, "STOPPED_S", 1e9)  # by what it answers, not by its state


@pytest.fixture
def server(tmp_path):
    with serving_small_pipeline(tmp_path) as running:
        yield running


@pytest.fixture
def watching(short, server):
    found = Watching(server)
    yield found
    found.watcher.close()


def _answers(server) -> bool:
    with grpc.InferenceServerClient(server.control.address) as client:
        return ask(client) == 0


def test_a_triton_that_is_stopped_is_killed_and_started_again(server, watching):
    watching.until(lambda: watching.watcher._pulse._judged == server.pid, 20, "a first look")
    before = server.pid
    stubs = live_stubs(before)
    psutil.Process(before).suspend()
    watching.until(lambda: "Triton is serving again" in watching.told, HEAL_S, "restart")
    assert any("Triton hangs (no answer to" in line for line in watching.told)
    assert server.pid != before
    assert _answers(server)
    assert not {stub.pid for stub in stubs} & {stub.pid for stub in live_stubs(server.pid)}
    assert watching.watcher.events.counts["triton_hung", ""] == 1
    assert watching.watcher.events.counts["triton_restarted", ""] == 1


def test_streams_alone_that_are_dead_are_a_death(server, watching, monkeypatch):
    watching.until(lambda: watching.watcher._pulse._judged == server.pid, 20, "a first look")
    monkeypatch.setattr(server.control, "answers_streams", lambda timeout_s: False)
    watching.until(lambda: any("no answer to streams" in t for t in watching.told), 20, "notice")
    monkeypatch.undo()
    watching.until(lambda: "Triton is serving again" in watching.told, HEAL_S, "restart")
    assert _answers(server)


def test_a_model_s_process_that_is_stopped_is_replaced(server, watching):
    watching.until(lambda: watching.watcher._pulse._judged == server.pid, 20, "a first look")
    pid = server.pid
    hung = [stub for stub in live_stubs(pid) if stub.model == "mood_onnx"]
    for stub in hung:
        psutil.Process(stub.pid).suspend()
    watching.until(lambda: f"revived {NAME}" in watching.told, HEAL_S, "revival")
    assert server.pid == pid
    assert _answers(server)
    watching.until(lambda: not _stopped(hung), 25, "the end of what was stopped")


def test_a_model_that_is_only_busy_is_left_alone(short, tmp_path):
    slow = "self._number = lambda value, n=self._number: (time.sleep(0.4), n(value))[1]"
    with serving_small_pipeline(tmp_path, lambda repository: _slow(repository, slow)) as server:
        watching = Watching(server)
        served = len(_all_answers(server, 40, watching))
        assert served == 40
        watching.watcher.close()
        quiet = [t for t in watching.told if "revived" in t or "answer" in t]
        assert not quiet
        count = sum(each.inference_stats.success.count for each in server.control.statistics(NAME))
        assert count >= 40  # its statistics are those of one life


def _stopped(stubs) -> list[int]:
    found = []
    for stub in stubs:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(stub.pid).status() == psutil.STATUS_STOPPED:
                found.append(stub.pid)
    return found


def _slow(repository, line):
    for path in (repository / "mood_onnx").glob("*/model.py"):
        path.write_text(path.read_text().replace("        pass\n", f"        {line}\n", 1))


def _all_answers(server, count, watching):
    """As many at once, from clients of their own, while the watcher watches."""
    answers = []

    def call():
        with grpc.InferenceServerClient(server.control.address) as client:
            answers.append(ask(client))

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    watching.until(lambda: not any(t.is_alive() for t in threads), 60, "every answer")
    return answers


def test_nothing_ends_the_watcher_and_its_heart_beats(server, watching, monkeypatch):
    def fail(self):
        raise RuntimeError("told to fail")

    monkeypatch.setattr(Watcher, "_look", fail)
    watching.watcher.check()
    assert any("RuntimeError: told to fail" in line for line in watching.told)
    page = (server.options.work_dir / "watch.prom").read_text()
    beat = float(page.rpartition("timestamp_seconds ")[2])
    assert abs(time.time() - beat) < 10


def test_a_stalled_watcher_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(pulse, "STALLED_S", 0.1)
    heard = []
    looked = pulse.Pulse(None, lambda: None, lambda *found: heard.append(found))
    looked.round_began = time.monotonic() - 1
    looked._look_at_watcher()
    assert heard[0][0] == "watcher_stalled"
    assert Events(tmp_path).render()


def test_a_golden_sample_that_cannot_be_used_is_a_fault_of_its_model(server):
    config = server.control.config(NAME)
    found = []
    for text in ("{", "{}", '{"request": {"x": 1}, "expect": {"score": [NaN]}, "tolerance": 0.1}'):
        config.parameters[GOLDEN_PARAMETER].string_value = text
        found.append(fault(server.control, NAME, config))
    assert all(each.startswith("has a golden sample that ") for each in found), found
    assert len(set(found)) == 3
