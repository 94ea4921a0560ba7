"""The rows of one request, inferred as batches, of which a few are at Triton at a time.

The request has one turn at the model, which between two batches goes to whoever waits for one. With
more turns, which nobody waits for, further workers take part: they leave as soon as others wait,
and come back when nobody does any more.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence

from tritonclient.grpc import service_pb2

from gateway.errors import DeadlineExceeded, InvalidRequest, NoCapacity, ReplicaLost
from gateway.http.request_context import RequestContext
from gateway.models.rows import Batch, Tensors, read_tensors
from gateway.models.short import NOT_SHORT, Short
from gateway.upstream.admission import FairQueue, Turn
from gateway.upstream.replicas import Permit, ReplicaPool
from gateway.upstream.server import Upstream

HasNext = Callable[[], Coroutine[None, None, bool]]
OnResponse = Callable[[Batch, service_pb2.ModelInferResponse], None]
WORKERS = 8  # batches of one request in flight at a time


class RowInference:
    """The inference of one request's batches by the model ``serving``; use ``run`` once.

    Each permit is kept for one batch after another, so that a request that has begun is not refused
    halfway; if its replica is lost, the rest is sent to another one, if the request ``may_repeat``
    what that had under way.
    """

    def __init__(
        self,
        context: RequestContext,
        pool: ReplicaPool,
        queue: FairQueue | None,
        serving: str,
        row_batches: Sequence[Batch],
        on_response: OnResponse | None = None,
        *,
        may_repeat: bool,
        short: Short = NOT_SHORT,
    ) -> None:
        """``short``: what the model that is ``serving`` says."""
        self._context, self._pool, self._queue = context, pool, queue
        self._serving, self._may_repeat = serving, may_repeat
        self._short = short
        self._count, self._on_response = len(row_batches), on_response
        self._pending = deque(row_batches)
        self._results: dict[int, tuple[Tensors, int]] = {}
        self._batch_ended = asyncio.Event()  # set and cleared at once: it wakes those that wait now

    async def run(self, turn: Turn, weight: float, most_workers: int) -> list[tuple[Tensors, int]]:
        """The rows' results, in their order: the tensors of the batch with the row, and its index
        in that. The first failure cancels the rest and is raised as it is.

        ``turn`` is the request's, and ``weight`` its tenant's. Raises NoCapacity if not even one
        permit is available.
        """
        self._context.remaining_s()  # raises if there is none
        first = self._first_worker(turn, weight)
        further = range(1, min(self._count, WORKERS, most_workers))
        await _gather([first, *(self._further_worker() for _ in further)])
        return [self._results[row_index] for row_index in sorted(self._results)]

    async def _first_worker(self, turn: Turn, weight: float) -> None:
        """It has the request's turn, and goes on until nothing is pending."""

        async def has_next() -> bool:
            if self._results:
                await turn.pass_on(self._context.tenant, weight, self._context.remaining_s())
            return bool(self._pending)  # the others may have taken the rest meanwhile

        await self._work(self._pool.permit(self._serving), has_next)

    async def _further_worker(self) -> None:
        """It takes part whenever nobody waits for a turn and there is a permit. While anything is
        pending the first one sends batches, whose ends are when to look again."""
        queue = self._queue

        async def has_next() -> bool:
            others_wait = queue is not None and queue.waiting > 0
            return bool(self._pending) and not others_wait

        while self._pending:
            turn = queue.try_enter() if queue else Turn(None)
            if turn is not None:
                with turn:
                    try:
                        permit = self._pool.permit(self._serving)
                    except NoCapacity:
                        pass
                    else:
                        await self._work(permit, has_next)
            if self._pending:
                await self._batch_ended.wait()

    async def _work(self, permit: Permit, has_next: HasNext) -> None:
        """Infer batches on the permit's replica for as long as ``has_next`` says so."""
        under_way: deque[Batch] = deque(maxlen=1)
        try:
            with permit as upstream:
                await self._infer(upstream, under_way, has_next)
        except ReplicaLost as error:
            second = self._pool.second_permit(permit, error, may_repeat=self._may_repeat)
            with second as upstream:
                await self._infer(upstream, under_way, has_next)

    async def _infer(
        self,
        upstream: Upstream,
        under_way: deque[Batch],
        has_next: HasNext,
    ) -> None:
        """``under_way`` holds the batch that is being sent, also after an error."""
        while under_way or await has_next():
            if not under_way:
                under_way.append(self._pending.popleft())
            batch = under_way[0]
            batch.message.model_name = self._serving
            self._context.sent_to(upstream.address)
            tensors = await infer_batch(
                self._context, upstream, batch, self._on_response, self._short
            )
            under_way.clear()
            for index, row_index in enumerate(batch.row_indices):
                self._results[row_index] = tensors, index
            self._batch_ended.set()
            self._batch_ended.clear()


async def infer_only(
    context: RequestContext,
    pool: ReplicaPool,
    serving: str,
    batch: Batch,
    on_response: OnResponse | None = None,
    *,
    may_repeat: bool,
    short: Short = NOT_SHORT,
) -> list[tuple[Tensors, int]]:
    """As ``RowInference.run``, for a request whose rows are one batch: nobody else can take part,
    and its turn ends with it."""
    context.remaining_s()  # raises if there is none
    batch.message.model_name = serving

    async def send(upstream: Upstream) -> Tensors:
        context.sent_to(upstream.address)
        return await infer_batch(context, upstream, batch, on_response, short)

    tensors = await pool.call(serving, "", send, may_repeat=may_repeat)
    return [(tensors, index) for index in range(len(batch.row_indices))]


async def infer_batch(
    context: RequestContext,
    upstream: Upstream,
    batch: Batch,
    on_response: OnResponse | None = None,
    short: Short = NOT_SHORT,
) -> Tensors:
    """The output tensors of one batch, whose response ``on_response`` gets. An InvalidRequest names
    the row by its index in the caller's request."""
    remaining_s = context.deadline - time.perf_counter()
    if remaining_s <= 0:
        raise DeadlineExceeded("the model did not answer in time: try again or send less")
    started = time.perf_counter()
    try:
        response = await upstream.infer(batch.message, remaining_s, short, context.tenant)
    except InvalidRequest as error:
        raise _with_caller_row(error, batch.row_indices) from error
    upstream_s = time.perf_counter() - started
    context.version = response.model_version
    tensors = read_tensors(response, len(batch.row_indices))
    if on_response:
        on_response(batch, response)
    if context.shadow:
        context.shadow.answered(batch.message, response, upstream_s)
    return tensors


def _with_caller_row(error: InvalidRequest, row_indices: Sequence[int]) -> InvalidRequest:
    """The same error, with the row's index in the caller's request instead of in the batch."""
    if error.row is not None and error.row < len(row_indices):
        return error.at_row(row_indices[error.row])
    return error.at_row(row_indices[0]) if len(row_indices) == 1 else error


async def _gather(coroutines: Sequence[Coroutine[object, object, None]]) -> list[None]:
    """Run concurrently; the first failure cancels the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
