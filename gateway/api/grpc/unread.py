"""Calls that are answered, but whose clients do not take the answer.

gRPC writes an answer when its handler is through, and keeps it for as long as HTTP/2's flow control
says that the client has no room. ``grpc.aio`` has no deadline for that, and no way to cancel a call
from the server: a status that is sent (``context.abort``) waits behind the answer, for ever. The
library itself lets go of a call when its client has closed it, which it learns from a future that
its task ``rpc_task`` waits for; so what ends a call here is to settle that future. The call is then
released, which in gRPC's core cancels it: the client gets the status CANCELLED, which flow control
does not hold back, and the answer's memory is free.
"""

import asyncio
import gc
import logging
from collections.abc import Collection
from typing import Any

log = logging.getLogger("gateway")
# Every so many bytes of an answer have the patience once more: how much of an answer was taken
# cannot be seen, and a slow client shall not be cut while it reads.
BYTES_A_PATIENCE = 16 * 1024 * 1024
TOGETHER_S = 0.1  # calls that are overdue are searched for together, so often at the most
_TASK = "rpc_task"  # grpc.aio's name for the tasks that wait for the ends of calls


class Unread:
    """One for each server."""

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        self._overdue: dict[asyncio.Task[Any], str] = {}

    def bound(self, size: int, identifier: str, patience_s: float | None = None) -> None:
        """From now on the client has to take what the task that calls this has to say, ``size``
        bytes; else its call is cut, the task cancelled, and ``identifier`` logged."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a handler always runs in a task
        loop = asyncio.get_running_loop()
        seconds = allowed_s(self.patience_s if patience_s is None else patience_s, size)
        timer = loop.call_later(seconds, self._note, task, identifier)
        task.add_done_callback(lambda _: timer.cancel())

    def _note(self, task: asyncio.Task[Any], identifier: str) -> None:
        if not self._overdue:
            asyncio.get_running_loop().call_later(TOGETHER_S, self._cut_all)
        self._overdue[task] = identifier

    def _cut_all(self) -> None:
        overdue, self._overdue = self._overdue, {}
        late = {task: identifier for task, identifier in overdue.items() if not task.done()}
        for identifier in late.values():
            log.info("%s is cut: its answer was not read in time", identifier)
        _cut(late)


def allowed_s(patience_s: float, size: int) -> float:
    """Seconds in which an answer of ``size`` bytes has to be taken."""
    return patience_s * (1 + size / BYTES_A_PATIENCE)


def _cut(handlers: Collection[asyncio.Task[Any]]) -> None:
    """Cancel these calls, each by the task that its handler runs in, which is cancelled too."""
    loop, wanted = asyncio.get_running_loop(), set(handlers)
    for task in asyncio.all_tasks():
        if task.get_name() != _TASK or wanted.isdisjoint(_known_to(task)):
            continue
        # What it waits for first is that the client closes the call, then the handler.
        closed = getattr(task, "_fut_waiter", None)
        if type(closed) is not asyncio.Future or closed.done():
            continue  # the client has left just now
        closed.set_result(None)
        # gRPC settles it too, a moment later, unless it was cancelled: then it lets it be.
        loop.call_soon(_cancelled_again, closed)
    for task in wanted:
        task.cancel()


def _known_to(task: asyncio.Task[Any]) -> set[asyncio.Task[Any]]:
    """The tasks among the local variables of a coroutine that was compiled by Cython."""
    frames = gc.get_referents(task.get_coro())
    return {each for each in gc.get_referents(*frames) if isinstance(each, asyncio.Task)}


def _cancelled_again(future: asyncio.Future[None]) -> None:
    asyncio.Future.__init__(future, loop=future.get_loop())
    future.cancel()
