"""The event loop shared out between large bodies.

A connection whose bytes keep coming has one part of them read each time the loop comes round. With
many such connections that is a hundred milliseconds a round, and a small request takes several
rounds. Whoever has read a large part therefore waits for its turn before it reads the next: one
part a round, whatever the connections are. Tenants take turns, so that one's many connections do
not hold up another's few.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

BULK_BYTES = 64 * 1024  # smaller parts take no turns: they are what small requests send


class Turns:
    """One in each round of the loop: the next tenant's first. '' is who has no tenant."""

    def __init__(self) -> None:
        # Whose turn it is comes first.
        self._waiting: OrderedDict[str, deque[Callable[[], None]]] = OrderedDict()
        self._is_scheduled = False

    def call(self, go_on: Callable[[], None], tenant: str) -> None:
        """``go_on`` in a round of the loop in which no other one is called."""
        self._waiting.setdefault(tenant, deque()).append(go_on)
        if not self._is_scheduled:
            self._is_scheduled = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self._next, loop)

    async def take(self, tenant: str) -> None:
        """Returns in such a round."""
        turn = asyncio.Event()
        self.call(turn.set, tenant)
        await turn.wait()

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._waiting:
            self._is_scheduled = False
            return
        loop.call_soon(self._next, loop)  # whatever comes of this one
        tenant, turns = self._waiting.popitem(last=False)
        go_on = turns.popleft()
        if turns:
            self._waiting[tenant] = turns  # last of all now
        go_on()


TURNS = Turns()  # of the process's one loop
