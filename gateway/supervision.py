"""What runs beside the requests, watched: noticed when it ends or stalls, started again, counted.

A *task* here is anything of ours that should live as long as the gateway: a coroutine, a thread, a
server. While one is down or stalled the gateway is not ready (``faults``), and each restart is
counted (``tidegate_background_restarts_total``).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

log = logging.getLogger("gateway")
CHECK_S = 0.5
BACKOFF_S = (0.1, 0.5, 2.0, 5.0)  # before the first restart in a row, the second, ...
STEADY_S = 30.0  # a task that has run for so long begins with the first again
FAILURES = 4  # so many failed rounds in a row are shown
STALL_S = 15.0  # without a heartbeat for so long a task is stalled, if it names no other time


class Watched(Protocol):
    """Something that is looked at every ``CHECK_S``."""

    def fault(self) -> str:
        """'' while it does its work, else what is wrong."""

    def revive(self) -> bool:
        """Start it again if it has ended and may be; whether that was done."""


class Supervisor:
    """``open`` begins to watch; ``close`` ends every task that was ``run``."""

    def __init__(self, count: Callable[[str], None]) -> None:
        """``count`` is told the name of each task that was started again."""
        self._watched: dict[str, Watched] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._count = count

    def run(
        self, name: str, work: Callable[[], Awaitable[None]], *, stall_s: float | None = None
    ) -> "Task":
        """Keep ``work()`` running. With ``stall_s`` it must call ``Task.heartbeat`` that often, or
        it is cancelled and started again."""
        task = Task(name, work, stall_s)
        self.watch(name, task)
        task.begin()
        return task

    def watch(self, name: str, watched: Watched) -> None:
        self._watched[name] = watched

    def restarted(self, name: str, why: str) -> None:
        """Say that a task was started again by whoever looks after it."""
        log.error("background task %s %s: started again", name, why)
        self._count(name)

    def faults(self) -> dict[str, str]:
        """Each task that does not do its work, and why."""
        found = {name: watched.fault() for name, watched in self._watched.items()}
        return {name: fault for name, fault in found.items() if fault}

    def open(self) -> None:
        """Begin to look; needs a running loop."""
        self._timer = asyncio.get_running_loop().call_later(CHECK_S, self._check)

    async def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        tasks = [each for each in self._watched.values() if isinstance(each, Task)]
        for task in tasks:
            task.stop()
        await asyncio.gather(*(task.ended() for task in tasks))

    def _check(self) -> None:
        # A timer, not a task: nothing that a watched task does can end it.
        self._timer = asyncio.get_running_loop().call_later(CHECK_S, self._check)
        for name, watched in list(self._watched.items()):
            try:
                fault = watched.fault()
                if fault and watched.revive():
                    self.restarted(name, fault)
            except Exception:
                log.exception("background task %s could not be started again", name)


class Task:
    """A coroutine that should never end. What it raises is logged, ``BaseException``s too."""

    def __init__(
        self, name: str, work: Callable[[], Awaitable[None]], stall_s: float | None
    ) -> None:
        self._name, self._work, self._stall_s = name, work, stall_s
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._began = self._beat = self._down = 0.0  # time.monotonic
        self._in_a_row = 0
        self._why = ""
        self._failures, self._failure = 0, ""

    def begin(self) -> None:
        now = time.monotonic()
        if now - self._began > STEADY_S:
            self._in_a_row = 0
        self._began = self._beat = now
        self._task = asyncio.get_running_loop().create_task(self._guarded(), name=self._name)
        self._task.add_done_callback(self._has_ended)

    def heartbeat(self) -> None:
        """To be called by the work: it is alive, and its last round went well."""
        self._beat = time.monotonic()
        self._failures = 0

    def failed(self, why: str) -> None:
        """To be called by the work: it is alive, but its last round failed."""
        self._beat = time.monotonic()
        self._failures, self._failure = self._failures + 1, why

    def fault(self) -> str:
        if self._stopped:
            return ""
        if self._task is None or self._task.done():
            return f"has ended ({self._why or 'it returned'})"
        if self._stalled_s:
            return f"has stalled for {self._stalled_s:.0f} s"
        return f"fails: {self._failure}" if self._failures >= FAILURES else ""

    @property
    def _stalled_s(self) -> float:
        silent_s = time.monotonic() - self._beat
        return silent_s if self._stall_s is not None and silent_s > self._stall_s else 0.0

    def revive(self) -> bool:
        if self._task is not None and not self._task.done():
            if self._stalled_s:
                self._task.cancel()  # the next look finds it ended
            return False
        wait_s = BACKOFF_S[min(self._in_a_row, len(BACKOFF_S) - 1)]
        if time.monotonic() - self._down < wait_s:
            return False
        self.begin()
        self._in_a_row += 1
        return True

    def stop(self) -> None:
        self._stopped = True
        if self._task:
            self._task.cancel()

    async def ended(self) -> None:
        if self._task:
            await asyncio.wait([self._task])

    async def _guarded(self) -> None:
        try:
            await self._work()
        except SystemExit as error:  # asyncio would end the whole process with it
            raise RuntimeError(f"SystemExit: {error}") from error

    def _has_ended(self, task: "asyncio.Task[None]") -> None:
        self._down = time.monotonic()
        if self._stopped:
            return
        error = None if task.cancelled() else task.exception()
        self._why = "cancelled" if task.cancelled() else type(error).__name__ if error else ""
        log.error("background task %s has ended", self._name, exc_info=error)


async def every(
    seconds: float,
    work: Callable[[], Awaitable[None]],
    heartbeat: Callable[[], None],
    failed: Callable[[str], None] = lambda why: None,
) -> None:
    """Call ``work`` for ever, and ``heartbeat`` after each round that went well, else ``failed``.
    The next round comes all the same; the same failure again is not logged again."""
    before = ""
    while True:
        try:
            await work()
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            if why != before:
                log.exception("background work failed; trying again in %s s", seconds)
            before = why
            failed(why)
        else:
            before = ""
            heartbeat()
        await asyncio.sleep(seconds)
