"""Supervision of background tasks: one that ends or stalls is noticed, restarted and counted.

A *task* here is anything of ours that should run as long as the gateway: a coroutine, a thread, a
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
STEADY_S = 30.0  # after running this long, a task's backoff is reset
FAILURES = 4  # this many failed rounds in a row are reported
STALL_S = 15.0  # by default, a task without a heartbeat for this long counts as stalled


class Watched(Protocol):
    """Something that is checked every ``CHECK_S``."""

    def fault(self) -> str:
        """'' while it works, else what is wrong."""

    def revive(self) -> bool:
        """Restart it if it has ended and its backoff allows; returns whether it was restarted."""


class Supervisor:
    """``open`` starts watching; ``close`` ends every task that was started with ``run``."""

    def __init__(self, count: Callable[[str], None]) -> None:
        """``count`` is called with the name of each task that was restarted."""
        self._watched: dict[str, Watched] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._count = count

    def run(
        self, name: str, work: Callable[[], Awaitable[None]], *, stall_s: float | None = None
    ) -> "Task":
        """Keep ``work()`` running. With ``stall_s`` it must call ``Task.heartbeat`` that often, or
        it is cancelled and restarted."""
        task = Task(name, work, stall_s)
        self.watch(name, task)
        task.begin()
        return task

    def watch(self, name: str, watched: Watched) -> None:
        self._watched[name] = watched

    def restarted(self, name: str, why: str) -> None:
        """Report that a task was restarted by its owner."""
        log.error("background task %s %s: restarted", name, why)
        self._count(name)

    def faults(self) -> dict[str, str]:
        """Each task that does not work, and why."""
        faults = {name: watched.fault() for name, watched in self._watched.items()}
        return {name: fault for name, fault in faults.items() if fault}

    def open(self) -> None:
        """Start watching; needs a running loop."""
        self._timer = asyncio.get_running_loop().call_later(CHECK_S, self._check)

    async def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        tasks = [watched for watched in self._watched.values() if isinstance(watched, Task)]
        for task in tasks:
            task.stop()
        await asyncio.gather(*(task.ended() for task in tasks))

    def _check(self) -> None:
        # A timer, not a task: no watched task can end it.
        self._timer = asyncio.get_running_loop().call_later(CHECK_S, self._check)
        for name, watched in list(self._watched.items()):
            try:
                fault = watched.fault()
                if fault and watched.revive():
                    self.restarted(name, fault)
            except Exception:
                log.exception("background task %s could not be restarted", name)


class Task:
    """A coroutine that should never end. Whatever it raises is logged, ``BaseException``s too."""

    def __init__(
        self, name: str, work: Callable[[], Awaitable[None]], stall_s: float | None
    ) -> None:
        self._name, self._work, self._stall_s = name, work, stall_s
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._started_at = self._last_heartbeat = self._ended_at = 0.0  # monotonic seconds
        self._restarts = 0  # in a row
        self._why = ""
        self._failures, self._failure = 0, ""

    def begin(self) -> None:
        now = time.monotonic()
        if now - self._started_at > STEADY_S:
            self._restarts = 0
        self._started_at = self._last_heartbeat = now
        self._task = asyncio.get_running_loop().create_task(self._guarded(), name=self._name)
        self._task.add_done_callback(self._handle_end)

    def heartbeat(self) -> None:
        """Called by the work: it is alive, and its last round succeeded."""
        self._last_heartbeat = time.monotonic()
        self._failures = 0

    def failed(self, why: str) -> None:
        """Called by the work: it is alive, but its last round failed."""
        self._last_heartbeat = time.monotonic()
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
        silent_s = time.monotonic() - self._last_heartbeat
        return silent_s if self._stall_s is not None and silent_s > self._stall_s else 0.0

    def revive(self) -> bool:
        if self._task is not None and not self._task.done():
            if self._stalled_s:
                self._task.cancel()  # the next check finds it ended
            return False
        wait_s = BACKOFF_S[min(self._restarts, len(BACKOFF_S) - 1)]
        if time.monotonic() - self._ended_at < wait_s:
            return False
        self.begin()
        self._restarts += 1
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
        except SystemExit as error:  # asyncio would let it end the whole process
            raise RuntimeError(f"SystemExit: {error}") from error

    def _handle_end(self, task: "asyncio.Task[None]") -> None:
        self._ended_at = time.monotonic()
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
    """Call ``work`` forever, with ``heartbeat`` after each round that succeeded, else ``failed``.
    The next round comes in either case; a failure that repeats is logged once."""
    last_reason = ""
    while True:
        try:
            await work()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if reason != last_reason:
                log.exception("background work failed; trying again in %s s", seconds)
            last_reason = reason
            failed(reason)
        else:
            last_reason = ""
            heartbeat()
        await asyncio.sleep(seconds)
