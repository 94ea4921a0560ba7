"""How many batches of one request are at the model at a time, while others wait and when they do
not."""

import asyncio

import pytest
from tritonclient.grpc import service_pb2

from gateway.errors import UpstreamError
from gateway.models.rows import Batch
from gateway.row_inference import RowInference
from gateway.upstream.admission import FairQueue
from gateway.upstream.replicas import ReplicaPool
from tests.gateway.request_contexts import context_of
from tests.gateway.upstream.test_replicas import Connection

BATCHES, MOST = 12, 3


class _Upstream(Connection):
    """Each inference ends when the test says so."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.under_way: list[asyncio.Future[None]] = []

    async def infer(self, request, timeout_s, *_):
        ended = asyncio.get_running_loop().create_future()
        self.under_way.append(ended)
        await ended
        return service_pb2.ModelInferResponse(model_version="1")


class _Request:
    """A request of twelve batches whose model takes three at a time."""

    def __init__(self) -> None:
        self.pool = ReplicaPool(_Upstream, 100)
        self.pool.apply(["a:1"])
        self.pool.replicas[0].index_read({"m": ("1",)})
        self.under_way = self.pool.replicas[0].upstream.under_way
        self.queue = FairQueue(1)
        self.queue.limit.value = MOST
        context = context_of({"type": "http", "path": "/", "headers": []}, None, deadline_s=60)
        batches = [Batch((row,), service_pb2.ModelInferRequest()) for row in range(BATCHES)]
        self.inference = RowInference(
            *(context, self.pool, self.queue, "m", batches), may_repeat=False
        )

    async def run(self):
        with await self.queue.enter("rows", 1.0, 60) as turn:
            return await self.inference.run(turn, 1.0, most_workers=8)

    async def end_one(self) -> None:
        self.under_way.pop(0).set_result(None)
        await _settle()


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_further_workers_make_room_for_others_and_come_back_when_nobody_waits():
    request = _Request()
    running = asyncio.create_task(request.run())
    await _settle()
    assert len(request.under_way) == MOST
    others = [asyncio.create_task(request.queue.enter("other", 1.0, 60)) for _ in range(2)]
    await _settle()
    while not all(other.done() for other in others):
        await request.end_one()
    assert len(request.under_way) == 1
    await request.end_one()
    assert len(request.under_way) == 1  # the others have the two turns still
    for other in others:
        other.result().leave()
    await request.end_one()
    assert len(request.under_way) == MOST
    while not running.done():
        await request.end_one()
    results = await running
    assert [index for _, index in results] == [0] * BATCHES
    assert request.queue.in_flight == request.pool.replicas[0].inflight == 0


async def test_one_that_fails_ends_those_that_wait_to_take_part():
    request = _Request()
    request.queue.limit.value = 1
    running = asyncio.create_task(request.run())
    await _settle()
    assert len(request.under_way) == 1
    request.under_way.pop().set_exception(UpstreamError("failed"))
    with pytest.raises(UpstreamError):
        await asyncio.wait_for(running, 10)
    assert request.queue.in_flight == request.pool.replicas[0].inflight == 0
