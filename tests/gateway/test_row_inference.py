"""How many batches of one request are at the model at a time, while others wait and when they do
not."""

import asyncio

import pytest
from tritonclient.grpc import service_pb2

from gateway.errors import ReplicaLost, UpstreamError
from gateway.models.rows import Batch
from gateway.models.short import NOT_SHORT, Short
from gateway.row_inference import RowInference, infer_only
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


class _Losing(Connection):
    """The first one that is asked is lost after it was."""

    asked: list[str]

    async def infer(self, request, timeout_s, short=NOT_SHORT, tenant=""):
        self.asked.append(f"{request.model_name} {short.most_bytes} {tenant}")
        if len(self.asked) == 1:
            lost = ReplicaLost("gone", retry_after_s=1)
            lost.was_sent = True
            raise lost
        response = service_pb2.ModelInferResponse(model_version="1")
        response.outputs.add(name="y", datatype="INT32", shape=[2, 1])
        response.raw_output_contents.append(bytes(8))
        return response


@pytest.mark.parametrize("may_repeat", [True, False])
async def test_the_only_batch_is_sent_again_as_others_are(may_repeat):
    pool = ReplicaPool(_Losing, 100)
    pool.apply(["a:1", "b:1"])
    asked: list[str] = []
    for replica in pool.replicas:
        replica.index_read({"m": ("1",)})
        replica.upstream.asked = asked
    context = context_of({"type": "http", "path": "/", "headers": []}, None, deadline_s=60)
    batch = Batch((0, 1), service_pb2.ModelInferRequest())
    work = infer_only(context, pool, "m", batch, may_repeat=may_repeat, short=Short(7))
    if may_repeat:
        results = await work
        assert [index for _, index in results] == [0, 1]
        assert results[0][0]["y"].shape == (2, 1)
        assert context.version == "1"
    else:
        with pytest.raises(ReplicaLost):
            await work
    assert asked == ["m 7 default"] * (2 if may_repeat else 1)
    assert not any(replica.inflight for replica in pool.replicas)
