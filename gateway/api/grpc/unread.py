"""Cuts calls whose clients do not read the response.

gRPC writes a response when its handler returns, and keeps it for as long as HTTP/2's flow control
says that the client has no room. ``grpc.aio`` has no deadline for that, and no way to cancel a call
from the server: a status that is sent (``context.abort``) waits behind the response, forever. The
library itself releases a call when its client has closed it, which it learns from a future that its
task ``rpc_task`` awaits; so we end a call by resolving that future. The call is then released,
which in gRPC's core cancels it: the client gets the status CANCELLED, which flow control does not
hold back, and the response's memory is freed.
"""

import asyncio
import gc
import logging
from collections.abc import Collection
from typing import Any

log = logging.getLogger("gateway")
# A response gets the timeout once more for this many bytes: how much of it was read cannot be
# seen, and a slow client must not be cut while it reads.
BYTES_PER_TIMEOUT = 16 * 1024 * 1024
BATCH_S = 0.1  # overdue calls are cut together, at most this often
_TASK = "rpc_task"  # grpc.aio's name for the tasks that wait for calls to end


class Unread:
    """One per server."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._overdue: dict[asyncio.Task[Any], str] = {}

    def bound(self, size: int, identifier: str, timeout_s: float | None = None) -> None:
        """From now on the client has to read the response of the current task, ``size`` bytes, in
        time; else its call is cut, the task is cancelled, and ``identifier`` is logged."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a handler always runs in a task
        loop = asyncio.get_running_loop()
        seconds = allowed_s(self.timeout_s if timeout_s is None else timeout_s, size)
        timer = loop.call_later(seconds, self._note, task, identifier)
        task.add_done_callback(lambda _: timer.cancel())

    def _note(self, task: asyncio.Task[object], identifier: str) -> None:
        if not self._overdue:
            asyncio.get_running_loop().call_later(BATCH_S, self._cut_all)
        self._overdue[task] = identifier

    def _cut_all(self) -> None:
        overdue, self._overdue = self._overdue, {}
        late = {task: identifier for task, identifier in overdue.items() if not task.done()}
        for identifier in late.values():
            log.info("%s is cut: its response was not read in time", identifier)
        _cut(late)


def allowed_s(timeout_s: float, size: int) -> float:
    """Seconds within which a client has to read a response of ``size`` bytes."""
    return timeout_s * (1 + size / BYTES_PER_TIMEOUT)


def _cut(handlers: Collection[asyncio.Task[object]]) -> None:
    """Cancel the calls that these tasks handle, and the tasks."""
    loop = asyncio.get_running_loop()
    overdue = set(handlers)
    for task in asyncio.all_tasks():
        if task.get_name() != _TASK or overdue.isdisjoint(_referenced_tasks(task)):
            continue
        # It first awaits that the client closes the call, then the handler.
        closed = getattr(task, "_fut_waiter", None)
        if type(closed) is not asyncio.Future or closed.done():
            continue  # the client has just left
        closed.set_result(None)
        # gRPC resolves it too, a moment later, unless it was cancelled: then gRPC leaves it alone.
        loop.call_soon(_cancel_again, closed)
    for task in overdue:
        task.cancel()


def _referenced_tasks(task: asyncio.Task[object]) -> set[asyncio.Task[object]]:
    """The tasks among the local variables of a coroutine that Cython compiled."""
    frames = gc.get_referents(task.get_coro())
    return {local for local in gc.get_referents(*frames) if isinstance(local, asyncio.Task)}


def _cancel_again(future: asyncio.Future[None]) -> None:
    """Cancel a future that has been resolved already."""
    asyncio.Future.__init__(future, loop=future.get_loop())
    future.cancel()
