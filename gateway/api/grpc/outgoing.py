"""A stream's answers on their way to a client that may read slowly, or not at all.

They are written by a task of their own, so that what the client has not read keeps nobody from
hearing what Triton has answered. Whoever puts an answer waits where many are left.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack

from gateway.api.grpc.unread import allowed_s

ROOM = 32  # answers; and of bytes (the last one may go beyond):
ROOM_BYTES = 1 << 20
# An answer, or None where there is nothing to write; what is to be done once it was taken; and
# what counts its bytes meanwhile.
_Entry = tuple[bytes | None, Callable[[], Awaitable[None]] | None, ExitStack]


class Outgoing:
    """``write`` awaits until the client takes an answer; ``give_up`` is called when that lasts
    longer than ``patience_s`` (see ``allowed_s``). ``counting`` is entered with the size of each
    answer that waits."""

    def __init__(
        self,
        write: Callable[[bytes], Awaitable[None]],
        give_up: Callable[[], None],
        patience_s: float,
        counting: Callable[[int], AbstractContextManager[None]],
    ) -> None:
        self._write, self._give_up, self._patience_s = write, give_up, patience_s
        self._counting = counting
        self._entries: deque[_Entry] = deque()
        self._bytes = 0
        self._has_ended = False
        self._changed = asyncio.Condition()

    async def put(
        self, answer: bytes | None, then: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        async with self._changed:
            await self._changed.wait_for(self.has_room)
            if self._has_ended:
                return
            counted = ExitStack()
            counted.enter_context(self._counting(len(answer or b"")))
            self._entries.append((answer, then, counted))
            self._bytes += len(answer or b"")
            self._changed.notify_all()

    async def drained(self) -> None:
        """Returns when everything was taken."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._entries)

    async def run(self) -> None:
        """Write, until cancelled; what was not taken then never is."""
        try:
            await self._run()
        finally:
            self._has_ended = True
            for _, _, counted in self._entries:
                counted.close()
            self._entries.clear()  # whoever still knows this shall not keep the answers

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._entries))
            answer, then, counted = self._entries[0]
            if answer is not None:
                patience = loop.call_later(allowed_s(self._patience_s, len(answer)), self._give_up)
                try:
                    await self._write(answer)
                finally:
                    patience.cancel()
            if then is not None:
                await then()
            async with self._changed:
                self._entries.popleft()
                counted.close()
                self._bytes -= len(answer or b"")
                self._changed.notify_all()

    def has_room(self) -> bool:
        """Whether ``put`` returns at once."""
        return len(self._entries) < ROOM and self._bytes < ROOM_BYTES
