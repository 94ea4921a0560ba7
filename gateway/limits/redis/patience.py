"""A bound on a wait that counts only the time in which this process ran."""

import asyncio
from types import TracebackType

PARTS = 5


class Patience:
    """``async with Patience(s)``: as ``asyncio.timeout``, but a stall is not held against whom we
    wait for.

    After a stall, timers that are overdue come before what was received meanwhile. Here the time is
    waited in ``PARTS``, each begun when the one before was noticed to be over: however long a stall
    takes, it costs one part, and the answer that came during it is read before the next.
    """

    __slots__ = ("_left", "_limit", "_loop", "_part_s", "_timer")

    def __init__(self, seconds: float) -> None:
        self._part_s, self._left = seconds / PARTS, PARTS
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._part_s, self._is_over)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raises TimeoutError when the time was over."""
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def _is_over(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = self._loop.call_later(self._part_s, self._is_over)
        else:
            self._limit.reschedule(self._loop.time())
