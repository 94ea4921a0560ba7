"""What each caller holds of this worker beside the limits of gateway.toml.

A stream on which nothing moves and a message that is still arriving cost memory, but no request
that a limit could count. So each has a bound for each caller. Answers that are not read are counted
with those of the other APIs (``gateway.http.held``).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gateway.errors import GatewayError, QuotaExceeded

MAX_SILENT_STREAMS = 64
MAX_ARRIVING = 16  # fewer, where so many messages could be more bytes than a caller may hold

End = Callable[[GatewayError], None]


class Holdings:
    """One for each worker. Callers are known by their principals' ids.

    ``most_bytes`` is what a caller may hold; a message that arrives may be ``message_bytes``, and
    how much of it is here cannot be seen before it is whole.
    """

    def __init__(self, most_bytes: int, message_bytes: int) -> None:
        self._most_arriving = max(1, min(MAX_ARRIVING, most_bytes // message_bytes))
        self._silent: dict[str, dict[End, None]] = {}
        self._arriving: dict[str, tuple[asyncio.Semaphore, int]] = {}

    def open_stream(self, caller: str, end: End) -> None:
        """A stream begins, and nothing is under way on it yet; ``end`` ends it. QuotaExceeded when
        the caller has as many as may be."""
        if len(self._silent.get(caller, ())) >= MAX_SILENT_STREAMS:
            raise _too_many_silent()
        self._silent.setdefault(caller, {})[end] = None

    def fell_silent(self, caller: str, end: End) -> None:
        """The last message of a stream was answered. Where that makes one too many, the one that
        has been silent for longest is ended."""
        streams = self._silent.setdefault(caller, {})
        streams[end] = None
        if len(streams) > MAX_SILENT_STREAMS:
            oldest = next(iter(streams))
            self.leave(caller, oldest)
            oldest(_too_many_silent())

    def leave(self, caller: str, end: End) -> None:
        """The stream is not silent any more, or has ended."""
        streams = self._silent.get(caller, {})
        streams.pop(end, None)
        if not streams:
            self._silent.pop(caller, None)

    @asynccontextmanager
    async def arriving(self, caller: str) -> AsyncIterator[None]:
        """Around the reading of a message: the caller's others wait for it where there are many,
        and are not held in memory meanwhile."""
        turns, users = self._arriving.get(caller) or (asyncio.Semaphore(self._most_arriving), 0)
        self._arriving[caller] = turns, users + 1
        try:
            async with turns:
                yield
        finally:
            _, users = self._arriving[caller]
            if users > 1:
                self._arriving[caller] = turns, users - 1
            else:
                del self._arriving[caller]


def _too_many_silent() -> QuotaExceeded:
    return QuotaExceeded(
        f"you have {MAX_SILENT_STREAMS} streams open on which nothing is under way, or whose "
        "answers you do not read: use those, or close some",
        retry_after_s=1,
    )
