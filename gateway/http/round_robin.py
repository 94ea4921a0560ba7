"""Shares the event loop between large bodies.

A connection with more data to read has one part of it read per iteration of the loop. With many
such connections an iteration takes a hundred milliseconds, and a small request takes several
iterations. A connection that has read a large part therefore waits for its turn before it reads the
next one: one part per iteration, however many connections there are. Tenants take turns, so that
one tenant's many connections do not hold up another's few.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

BULK_BYTES = 64 * 1024  # smaller parts need no turn: small requests consist of them


class RoundRobin:
    """One call per iteration of the loop: the next tenant's first. '' stands for no tenant."""

    def __init__(self) -> None:
        # The tenant whose turn is next comes first.
        self._waiting: OrderedDict[str, deque[Callable[[], None]]] = OrderedDict()
        self._is_scheduled = False

    def call(self, callback: Callable[[], None], tenant: str) -> None:
        """Call ``callback`` in an iteration of the loop in which no other one is called."""
        self._waiting.setdefault(tenant, deque()).append(callback)
        if not self._is_scheduled:
            self._is_scheduled = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self._next, loop)

    async def take(self, tenant: str) -> None:
        """Wait for such an iteration."""
        turn = asyncio.Event()
        self.call(turn.set, tenant)
        await turn.wait()

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._waiting:
            self._is_scheduled = False
            return
        loop.call_soon(self._next, loop)  # first, in case the callback raises
        tenant, callbacks = self._waiting.popitem(last=False)
        callback = callbacks.popleft()
        if callbacks:
            self._waiting[tenant] = callbacks  # now at the end of the queue
        callback()


ROUND_ROBIN = RoundRobin()  # for the process's one event loop
