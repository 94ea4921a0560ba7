"""Long work for one request, done beside the event loop: other requests go on meanwhile.

Two threads, since Python runs one at a time: the second is there so that a tenant with a queue of
large bodies is not waited for by the others. Tenants take turns.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from gateway.errors import DeadlineExceeded
from gateway.http.request_context import RequestContext

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 2


class OffLoop:
    """``run`` waits for the work, which must be a plain function that touches nothing shared.

    What it calls may hold the interpreter's lock for some 10 ms at most: no other thread runs then.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, "tidegate-large")
        self._free = THREADS
        # Whose turn it is comes first.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def run(
        self, context: RequestContext, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What ``work`` returns or raises. DeadlineExceeded, and ClientGone, end the waiting; work
        that has begun goes on to its end."""
        return await context.while_connected(self._run(context, lambda: work(*args, **kwargs)))

    async def _run(self, context: RequestContext, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(context.remaining_s()):
                await self._turn(loop, context.tenant)
                done = self._executor.submit(work)
                done.add_done_callback(lambda _: _call_soon(loop, self._give_back))
                return await asyncio.wrap_future(done, loop=loop)
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed while the body was read: try again or send less"
            ) from None

    async def _turn(self, loop: asyncio.AbstractEventLoop, tenant: str) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back()
            raise

    def _give_back(self) -> None:
        """A thread is free: the next tenant's first request has it."""
        while self._waiting:
            tenant, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[tenant] = turns  # last of all now
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], Any]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
