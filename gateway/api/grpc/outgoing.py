"""A stream's responses on their way to a client that may read slowly, or not at all.

A task of its own writes them, so that an unread response does not keep the gateway from reading
Triton's next one. ``put`` waits while many are queued.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack

from gateway.api.grpc.unread import allowed_s

QUEUE_LENGTH = 32  # responses
QUEUE_BYTES = 1 << 20  # the last response may exceed it
# A response, or None where there is nothing to write; what to do once the client took it; and what
# counts its bytes meanwhile.
_Entry = tuple[bytes | None, Callable[[], Awaitable[None]] | None, ExitStack]


class Outgoing:
    """``write`` awaits until the client takes a response; ``give_up`` is called when that takes
    longer than ``timeout_s`` allows (see ``allowed_s``). ``counting`` is entered with the size of
    each queued response."""

    def __init__(
        self,
        write: Callable[[bytes], Awaitable[None]],
        give_up: Callable[[], None],
        timeout_s: float,
        counting: Callable[[int], AbstractContextManager[None]],
    ) -> None:
        self._write, self._give_up, self._timeout_s = write, give_up, timeout_s
        self._counting = counting
        self._entries: deque[_Entry] = deque()
        self._bytes = 0
        self._has_ended = False
        self._changed = asyncio.Condition()

    async def put(
        self, response: bytes | None, then: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Queue a response; ``then`` is awaited once the client took it."""
        async with self._changed:
            await self._changed.wait_for(self.has_room)
            if self._has_ended:
                return
            counting = ExitStack()
            counting.enter_context(self._counting(len(response or b"")))
            self._entries.append((response, then, counting))
            self._bytes += len(response or b"")
            self._changed.notify_all()

    async def drained(self) -> None:
        """Return when the client has taken everything."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._entries)

    async def run(self) -> None:
        """Write until cancelled; what is queued then is dropped."""
        try:
            await self._run()
        finally:
            self._has_ended = True
            for _, _, counting in self._entries:
                counting.close()
            self._entries.clear()  # a reference to this object shall not keep the responses

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._entries))
            response, then, counting = self._entries[0]
            if response is not None:
                timer = loop.call_later(allowed_s(self._timeout_s, len(response)), self._give_up)
                try:
                    await self._write(response)
                finally:
                    timer.cancel()
            if then is not None:
                await then()
            async with self._changed:
                self._entries.popleft()
                counting.close()
                self._bytes -= len(response or b"")
                self._changed.notify_all()

    def has_room(self) -> bool:
        """Whether ``put`` returns at once."""
        return len(self._entries) < QUEUE_LENGTH and self._bytes < QUEUE_BYTES
