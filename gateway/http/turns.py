"""The event loop shared out between large bodies.

A connection whose bytes keep coming has one part of them read each time the loop comes round. With
many such connections that is a hundred milliseconds a round, and a small request takes several
rounds. Whoever has read a large part therefore waits for its turn before it reads the next: one
part a round, whatever the connections are.
"""

import asyncio
from collections import deque
from collections.abc import Callable

BULK_BYTES = 64 * 1024  # smaller parts take no turns: they are what small requests send


class Turns:
    """First come, first served; one in each round of the loop."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_scheduled = False

    def call(self, go_on: Callable[[], None]) -> None:
        """``go_on`` in a round of the loop in which no other one is called."""
        self._waiting.append(go_on)
        if not self._is_scheduled:
            self._is_scheduled = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self._next, loop)

    async def take(self) -> None:
        """Returns in such a round."""
        turn = asyncio.Event()
        self.call(turn.set)
        await turn.wait()

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting:
            self._waiting.popleft()()
            loop.call_soon(self._next, loop)
        else:
            self._is_scheduled = False


TURNS = Turns()  # of the process's one loop
