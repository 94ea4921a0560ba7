"""Whether a Triton is alive: it is judged by its answers, and killed if there are none.

A Triton whose process runs can still be dead: stopped, or deadlocked in its own signal handler
while its HTTP readiness says 200. ``Pulse`` checks the two threads that everything depends on: the
one for control calls, and the one that serves all streams.
"""

import threading
import time
from collections.abc import Callable

import psutil

from serving.health.progress import STOPPED_S
from serving.triton.control import TritonControl

LOOK_EVERY_S = 2.0
RESPONSE_S = 4.0  # how long one look waits for each answer
SILENT_S = 25.0  # without an answer for this long, over LOOKS looks, the server is dead
LOOKS = 4
START_S = 60.0  # how long a start may take
STALLED_S = 180.0  # how long one round of the watcher may take


class Pulse:
    """Runs in its own thread, so that nothing that hangs with Triton can keep it from being killed.

    It only kills; the watcher sees that the process has ended and restarts it. ``pid()`` is the
    process to check, or None.
    """

    def __init__(
        self,
        control: TritonControl,
        pid: Callable[[], int | None],
        report: Callable[[str, str], None],
    ) -> None:
        """``report(event, detail)`` is called in the thread."""
        self._control, self._pid, self._report = control, pid, report
        self._ended = threading.Event()
        self._judged: int | None = None  # pid of the process whose start is over
        self._starting: tuple[int, float] = (0, 0.0)  # pid of the starting process, and since when
        self._responded: dict[str, float] = {}  # when each thread last answered
        self._missed: dict[str, int] = {}
        self._stopped_since: float | None = None
        self.round_began = 0.0  # when the watcher began a round that is not over; 0 between rounds
        self._thread = threading.Thread(target=self._run, name="triton-pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            try:
                self.look()
                self._look_at_watcher()
            except Exception as error:  # nothing may end this thread
                self._report("pulse_failed", f"{type(error).__name__}: {error}")

    def look(self) -> None:
        """Check once; kill the process if it has been silent for too long."""
        pid = self._pid()
        if pid is None:
            self._judged = None
            return
        if self._is_stopped_for_long(pid):
            self._kill(pid, f"no answer to anything: it has been stopped for {STOPPED_S:g} s")
            return
        responses = {
            "control calls": self._control.is_live(RESPONSE_S),
            "streams": self._control.streams_respond(RESPONSE_S),
        }
        if pid != self._pid():
            return
        now = time.monotonic()
        if pid != self._judged:
            # A process that is starting is for the launcher to judge.
            if pid != self._starting[0]:
                self._starting = pid, now
            if responses["control calls"] or now - self._starting[1] > START_S:
                self._judged = pid
                self._responded, self._missed = dict.fromkeys(responses, now), {}
            return
        for thread, has_responded in responses.items():
            self._missed[thread] = 0 if has_responded else self._missed.get(thread, 0) + 1
            if has_responded:
                self._responded[thread] = now
            silent_s = now - self._responded[thread]
            if silent_s >= SILENT_S and self._missed[thread] >= LOOKS:
                self._kill(pid, f"no answer to {thread} for {silent_s:.0f} s")
                return

    def _is_stopped_for_long(self, pid: int) -> bool:
        """Whether the process was stopped (SIGSTOP) long ago: that is not load, so there is nothing
        to wait for."""
        try:
            is_stopped = psutil.Process(pid).status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False
        now = time.monotonic()
        self._stopped_since = (self._stopped_since or now) if is_stopped else None
        return self._stopped_since is not None and now - self._stopped_since >= STOPPED_S

    def _kill(self, pid: int, reason: str) -> None:
        self._judged = None
        try:
            process = psutil.Process(pid)
            if process.name() == "tritonserver":
                self._report("triton_hung", reason)
                process.kill()
        except psutil.Error:
            return

    def _look_at_watcher(self) -> None:
        began = self.round_began
        if began and time.monotonic() - began > STALLED_S:
            self.round_began = time.monotonic()  # reported again after as long
            self._report(
                "watcher_stalled", f"one round of the watcher takes over {STALLED_S:.0f} s"
            )
