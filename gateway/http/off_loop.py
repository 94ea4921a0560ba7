"""Long work for one request, done off the event loop, so that other requests proceed meanwhile.

Two threads, although Python runs one at a time: with the second, other tenants do not wait for one
tenant's queue of large bodies. Tenants take turns.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from gateway.errors import DeadlineExceeded
from gateway.http.request_context import RequestContext

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 2


class OffLoop:
    """``run`` waits for the work, which must be a plain function that touches nothing shared.

    Each of its calls may hold the interpreter's lock for about 10 ms at most: no other thread runs
    then.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, "tidegate-large")
        self._free = THREADS
        # The tenant whose turn is next comes first.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def run(
        self, context: RequestContext, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What ``work`` returns or raises. DeadlineExceeded and ClientGone end the wait; work that
        has started runs to its end."""
        return await context.while_connected(self._run(context, lambda: work(*args, **kwargs)))

    async def _run(self, context: RequestContext, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(context.remaining_s()):
                await self._wait_for_turn(loop, context.tenant)
                future = self._executor.submit(work)
                future.add_done_callback(lambda _: _call_soon(loop, self._release_thread))
                return await asyncio.wrap_future(future, loop=loop)
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed while the body was read: try again or send less"
            ) from None

    async def _wait_for_turn(self, loop: asyncio.AbstractEventLoop, tenant: str) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release_thread()
            raise

    def _release_thread(self) -> None:
        """A thread is free: hand it to the next tenant's first request."""
        while self._waiting:
            tenant, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[tenant] = turns  # now at the end of the queue
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)
