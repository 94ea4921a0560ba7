"""Processes that make progress are left alone, the others are ended, on a real Triton."""

import contextlib
import errno
import os
import threading
import time
from pathlib import Path

import psutil
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from serving.health import events, health, progress, pulse, watch
from serving.health.watch import Watcher
from serving.repository.model_repository import ModelRepository
from serving.triton.stubs import Stub, live_stubs
from tests.running import wait_until
from tests.serving.small_pipeline import NAME
from tests.serving.small_server import ask, serving_small_pipeline

# The engine sleeps for x milliseconds, and forever if x is 10^6 or more.
SLEEPS = (
    "self._number = lambda value, n=self._number: "
    "([time.sleep(0.2) for _ in iter(int, 1)], n(value))[1] "
    "if value.item() >= 1e6 else (time.sleep(value.item() / 1000), n(value))[1]"
)
HEAL_S = 120.0


class Watching:
    """A watcher that checks continuously, in a thread, and its messages."""

    def __init__(self, server) -> None:
        self.messages: list[str] = []
        self._server = server
        self.watcher = Watcher(server, [NAME], self.messages.append)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            self.watcher.check()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        with contextlib.suppress(AssertionError):  # otherwise the next test reports it
            wait_until(lambda: len(_engines(self._server)) == 2, 30, "two processes")
        self._ended.set()
        self._thread.join()
        self.watcher.close()

    def until_message(self, part: str, times: int = 1) -> None:
        wait_until(
            lambda: sum(part in line for line in self.messages) >= times,
            HEAL_S,
            f"{part!r} in {self.messages}",
        )

    def count(self, event: str, model: str = "mood_onnx") -> int:
        return self.watcher.events.counts[event, model]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    def slow(repository):
        for path in (repository / "mood_onnx").glob("*/model.py"):
            path.write_text(path.read_text().replace("        pass\n", f"        {SLEEPS}\n", 1))

    with serving_small_pipeline(tmp_path_factory.mktemp("progress"), slow) as running:
        yield running


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(progress, "LOOK_EVERY_S", 0.3)
    monkeypatch.setattr(progress, "STOPPED_S", 1.5)
    monkeypatch.setattr(progress, "HUNG_S", 6.0)
    monkeypatch.setattr(health, "PROBE_EVERY_S", 0.5)
    monkeypatch.setattr(health, "LATE_S", 1.0)
    monkeypatch.setattr(watch, "REST_S", 1.0)
    monkeypatch.setattr(pulse, "LOOK_EVERY_S", 0.5)


@pytest.fixture
def watching(server):
    with Watching(server) as watching:
        yield watching


def _engines(server):
    return [stub for stub in live_stubs(server.pid) if stub.model == "mood_onnx"]


class PendingRequest(threading.Thread):
    """One request in its own thread, and its outcome."""

    def __init__(self, server, x: float) -> None:
        super().__init__(daemon=True)
        self._address, self._x = server.control.address, x
        self.answer: float | None = None
        self.error = ""
        self.start()

    def run(self) -> None:
        with grpc.InferenceServerClient(self._address) as client:
            try:
                self.answer = ask(client, x=self._x)
            except InferenceServerException as error:
                self.error = str(error)


def _working(server):
    """The engines that are in a request now."""
    return [stub for stub in _engines(server) if _sleeps(stub.pid)]


def _sleeps(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "nanosleep" in Path(f"/proc/{pid}/wchan").read_text()
    return False


def _require_right_answers(server, count: int = 6) -> None:
    """``count`` requests in a row get the right answer, from whichever process."""
    with grpc.InferenceServerClient(server.control.address) as client:
        assert [ask(client) for _ in range(count)] == [0] * count


def test_a_stopped_process_is_ended_and_replaced(server, watching):
    victim = _engines(server)[0]
    psutil.Process(victim.pid).suspend()
    watching.until_message("revived mood_onnx")
    assert any(f"({victim.pid}) hangs: it has been stopped" in line for line in watching.messages)
    assert watching.count("process_hung") == watching.count("healed") == 1
    assert victim not in _engines(server)
    _require_right_answers(server)


def test_an_instance_that_hangs_in_execute_is_ended_while_its_sibling_works(server, watching):
    wait_until(lambda: len(_engines(server)) == 2, HEAL_S, "two processes")
    hung = PendingRequest(server, 1e6)
    wait_until(lambda: _working(server), 30, "the hung request")
    (victim,) = _working(server)
    _require_right_answers(server)  # the sibling works
    watching.until_message("revived mood_onnx")
    assert any(
        f"({victim.pid}) hangs: it has been in one request" in line for line in watching.messages
    )
    assert watching.count("process_hung") == 1
    hung.join(60)
    assert hung.error
    _require_right_answers(server)


def test_a_long_request_outlives_the_death_of_its_sibling(server, watching):
    """Its process is replaced, and ends once the request has been answered, not before."""
    wait_until(lambda: len(_engines(server)) == 2, HEAL_S, "two processes")
    long = PendingRequest(server, 14_000)
    wait_until(lambda: _working(server), 30, "the long request")
    (busy,) = _working(server)
    watching.watcher._health._progress.longest_request_s = 30.0  # longer than this request
    idle = next(stub for stub in _engines(server) if stub != busy)
    idle.end()
    watching.until_message("revived mood_onnx")
    assert busy in _engines(server)
    assert len(_engines(server)) == 3
    long.join(60)
    assert (long.answer, long.error) == (14_000, "")
    wait_until(lambda: len(_engines(server)) == 2, HEAL_S, "the end of the process that was old")
    assert busy not in _engines(server)
    assert watching.count("process_hung") == 0


def test_a_model_under_load_is_left_alone(server, watching):
    """Ten times the load it can take: no probe is answered in time, and nothing is reloaded."""
    wait_until(lambda: len(_engines(server)) == 2, HEAL_S, "two processes")
    before = set(_engines(server))
    requests = [PendingRequest(server, 300) for _ in range(80)]
    for request in requests:
        request.join(120)
    assert [request.answer for request in requests] == [300] * 80
    assert set(_engines(server)) == before
    assert watching.messages == []


def test_a_death_that_could_not_be_handled_is_detected_again(server, monkeypatch):
    fails = threading.Event()
    fails.set()
    index = server.control.index

    def failing(*tries):
        if fails.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        return index(*tries)

    monkeypatch.setattr(server.control, "index", failing)
    with Watching(server) as watching:
        _engines(server)[0].end()
        watching.until_message("not healed yet")
        fails.clear()
        watching.until_message("revived mood_onnx")
    _require_right_answers(server)


@pytest.mark.parametrize("broken", ["folder", "garbage", "full"])
def test_healing_goes_on_when_events_cannot_be_recorded(server, monkeypatch, broken):
    log = server.options.work_dir / "logs" / "events.jsonl"
    counters = server.options.work_dir / "watch.prom"
    for path in (log, counters):
        path.unlink(missing_ok=True)
        if broken == "folder":
            path.mkdir()
        elif broken == "garbage":
            path.write_bytes(b"\xff\x00 no line end")
        else:
            path.symlink_to("/dev/full")
    if broken == "full":
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        monkeypatch.setattr(events, "atomic_write", lambda *_: (_ for _ in ()).throw(full))
    try:
        with Watching(server) as watching:
            wait_until(lambda: len(_engines(server)) == 2, HEAL_S, "two processes")
            _engines(server)[0].end()
            watching.until_message("revived mood_onnx")
            time.sleep(0.5)
        warnings = [line for line in watching.messages if "not recorded" in line]
        expected = 0 if broken == "garbage" else 2  # once per file
        assert len(warnings) == expected, watching.messages
        if broken == "garbage":
            assert '"event": "healed", "model": "mood_onnx"' in log.read_text(errors="replace")
    finally:
        for path in (log, counters):
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    _require_right_answers(server)


def test_a_read_only_repository_is_healed_too(server, monkeypatch):
    """Its files can be neither touched nor locked."""

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(watch.os, "utime", refuse)
    monkeypatch.setattr(ModelRepository, "lock", refuse)
    with Watching(server) as watching:
        wait_until(lambda: len(_engines(server)) == 2, HEAL_S, "two processes")
        _engines(server)[0].end()
        watching.until_message("revived mood_onnx")
        wait_until(lambda: len(_engines(server)) == 2, HEAL_S, "two processes again")
    _require_right_answers(server)


def test_a_tell_callback_that_fails_stops_nothing(server):
    def tell(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    watcher = Watcher(server, [NAME], tell)
    try:
        _engines(server)[0].end()
        deadline = time.monotonic() + HEAL_S
        while not watcher.events.counts["healed", "mood_onnx"] or len(_engines(server)) != 2:
            assert time.monotonic() < deadline
            watcher.check()
            time.sleep(0.1)
    finally:
        watcher.close()
    _require_right_answers(server)


@pytest.mark.parametrize(("load_timeout_s", "is_hung"), [(300.0, True), (900.0, False)])
def test_a_model_may_load_for_as_long_as_the_load_timeout(load_timeout_s, is_hung):
    """A process that has neither talked nor used the CPU for ten minutes while it loads."""
    stub = Stub(1, "mood")
    seen = progress._Seen(b"", moved=0.0, idle_since=None, cpu_s=0.0, looked=600.0, worked=0.0)
    fault = progress.Progress(30.0, load_timeout_s)._fault(stub, seen, now=600.0)
    assert bool(fault) is is_hung
