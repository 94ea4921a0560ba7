"""A timer that is set and cleared far more often than it fires: for waits that mostly end at
once, where ``asyncio.timeout`` would cost as much as the rest of a piece of a stream."""

import asyncio
from collections.abc import Callable


class LazyTimer:
    """Calls ``fire`` at the time of the last ``set``. The loop's own timer stays as it is while
    that time only moves away: it looks again when it is called."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fire: Callable[[], object]) -> None:
        self._loop, self._fire = loop, fire
        self._due: float | None = None  # on the loop's clock
        self._handle: asyncio.TimerHandle | None = None
        self._wakes = 0.0  # when the loop's timer fires: uvloop's does not always say

    def set(self, due: float) -> None:
        self._due = due
        if self._handle is None:
            self._arm(due)
        elif self._wakes > due:
            self._handle.cancel()
            self._arm(due)

    def clear(self) -> None:
        """Do not fire until it is set again."""
        self._due = None

    def close(self) -> None:
        self._due = None
        if self._handle:
            self._handle.cancel()
            self._handle = None

    def _arm(self, due: float) -> None:
        self._wakes, self._handle = due, self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._handle = None
        due, now = self._due, self._loop.time()
        if due is None:
            return
        if due > now:
            self._arm(due)
        else:
            self._due = None
            self._fire()
