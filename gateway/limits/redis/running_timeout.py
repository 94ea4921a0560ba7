"""A timeout that counts only the time in which this process was running."""

import asyncio
from types import TracebackType

PARTS = 5


class RunningTimeout:
    """``async with RunningTimeout(s)``: as ``asyncio.timeout``, but a stall of this process does
    not count against the other side.

    After a stall, overdue timers run before data that was received meanwhile is read. Here the time
    is split into ``PARTS``, each of which starts when the end of the previous one was noticed:
    however long a stall takes, it costs one part, and a response that arrived during it is read
    before the next.
    """

    __slots__ = ("_limit", "_loop", "_part_s", "_remaining", "_timer")

    def __init__(self, seconds: float) -> None:
        self._part_s, self._remaining = seconds / PARTS, PARTS
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._part_s, self._is_over)

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raises TimeoutError if the time is over."""
        self._timer.cancel()
        await self._limit.__aexit__(error_type, error, traceback)

    def _is_over(self) -> None:
        self._remaining -= 1
        if self._remaining:
            self._timer = self._loop.call_later(self._part_s, self._is_over)
        else:
            self._limit.reschedule(self._loop.time())
