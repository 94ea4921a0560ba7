"""Bounds per caller on what the limits in gateway.toml do not count.

An idle stream and a message that is still arriving cost memory, but are not requests that a limit
could count. So each has a bound per caller. Responses that are not read are counted with those of
the other APIs (``gateway.http.memory_budget``).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

from gateway.errors import GatewayError, QuotaExceeded

MAX_SILENT_STREAMS = 64
MAX_ARRIVING = 16  # fewer, where that many messages could exceed the bytes a caller may hold

End = Callable[[GatewayError], None]
CallType = Literal["message", "reflection"]


class CallerBounds:
    """One per worker. Callers are identified by their principals' ids.

    ``most_bytes`` is what a caller may hold; an arriving message may be up to ``message_bytes``,
    and how much of it has arrived cannot be seen until it is complete.
    """

    def __init__(self, most_bytes: int, message_bytes: int) -> None:
        self._most_arriving = max(1, min(MAX_ARRIVING, most_bytes // message_bytes))
        self._silent: dict[str, dict[End, None]] = {}
        self._arriving: dict[tuple[str, CallType], tuple[asyncio.Semaphore, int]] = {}

    def open_stream(self, caller: str, end: End) -> None:
        """A stream has opened, and is silent so far; ``end`` ends it. Raises QuotaExceeded when the
        caller has as many silent streams as allowed."""
        if len(self._silent.get(caller, ())) >= MAX_SILENT_STREAMS:
            raise _too_many_silent()
        self._silent.setdefault(caller, {})[end] = None

    def fell_silent(self, caller: str, end: End) -> None:
        """The last message of a stream was answered. If that makes one silent stream too many, the
        one that has been silent longest is ended."""
        streams = self._silent.setdefault(caller, {})
        streams[end] = None
        if len(streams) > MAX_SILENT_STREAMS:
            oldest = next(iter(streams))
            self.leave(caller, oldest)
            oldest(_too_many_silent())

    def leave(self, caller: str, end: End) -> None:
        """The stream is no longer silent, or has ended."""
        streams = self._silent.get(caller, {})
        streams.pop(end, None)
        if not streams:
            self._silent.pop(caller, None)

    @asynccontextmanager
    async def arriving(self, caller: str, kind: CallType = "message") -> AsyncIterator[None]:
        """Enter around the reading of a message: beyond the bound, the caller's other messages
        wait, and take no memory meanwhile. Each kind has a bound of its own, so that reflection
        streams, which may be idle, hold up no inference."""
        key = caller, kind
        slots, users = self._arriving.get(key) or (asyncio.Semaphore(self._most_arriving), 0)
        self._arriving[key] = slots, users + 1
        try:
            async with slots:
                yield
        finally:
            _, users = self._arriving[key]
            if users > 1:
                self._arriving[key] = slots, users - 1
            else:
                del self._arriving[key]


def _too_many_silent() -> QuotaExceeded:
    return QuotaExceeded(
        f"you have {MAX_SILENT_STREAMS} open streams on which nothing is under way, or whose "
        "responses you do not read: use those, or close some",
        retry_after_s=1,
    )
