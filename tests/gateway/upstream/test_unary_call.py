"""A unary call is never cancelled amid its answer: Triton 2.51 dies of that."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from gateway.errors import DeadlineExceeded
from gateway.upstream.unary_call import GRACE_S, UnaryCalls
from tests.gateway.fake_triton import FakeTriton

REQUEST = service_pb2.ModelInferRequest(model_name="m")


class WatchedTriton(FakeTriton):
    """Answers after ``takes``; says how each call ended and which deadline came with it."""

    def __init__(self, takes_s: float) -> None:
        super().__init__()
        self.takes, self.ends, self.deadlines_s = takes_s, asyncio.Queue(), []

    async def ModelInfer(self, request, context):  # noqa: N802 - its name in the protocol
        self.deadlines_s.append(context.time_remaining())
        try:
            await asyncio.sleep(self.takes)
        except asyncio.CancelledError:
            self.ends.put_nowait("cancelled")
            raise
        self.ends.put_nowait("answered")
        return await super().ModelInfer(request, context)


@asynccontextmanager
async def calls(takes_s: float):
    triton = WatchedTriton(takes_s)
    async with grpc.aio.insecure_channel(await triton.start()) as channel:
        yield triton, UnaryCalls(service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer)
    await triton.stop()


async def _next_end(triton: WatchedTriton) -> str:
    return await asyncio.wait_for(triton.ends.get(), 20)


async def _until_deadline(unary: UnaryCalls) -> None:
    with pytest.raises(DeadlineExceeded):
        await unary.infer(REQUEST, 0.01)


async def _until_its_client_leaves(unary: UnaryCalls) -> None:
    task = asyncio.create_task(unary.infer(REQUEST, 60))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("abandon", [_until_deadline, _until_its_client_leaves])
def test_an_answer_that_is_due_is_awaited(abandon):
    async def check():
        async with calls(takes_s=0.01) as (triton, unary):
            await unary.infer(REQUEST, 60)  # connects
            assert await _next_end(triton) == "answered"
            triton.takes = GRACE_S / 2
            await abandon(unary)
            assert await _next_end(triton) == "answered"

    asyncio.run(check())


@pytest.mark.parametrize("abandon", [_until_deadline, _until_its_client_leaves])
def test_a_slow_call_is_cancelled(abandon):
    async def check():
        async with calls(takes_s=0.01) as (triton, unary):
            await unary.infer(REQUEST, 60)
            assert await _next_end(triton) == "answered"
            triton.takes = 60
            await abandon(unary)
            assert await _next_end(triton) == "cancelled"

    asyncio.run(check())


def test_the_deadline_is_not_sent():
    async def check():
        async with calls(takes_s=0) as (triton, unary):
            await unary.infer(REQUEST, 5)
            assert triton.deadlines_s[0] > 100

    asyncio.run(check())
