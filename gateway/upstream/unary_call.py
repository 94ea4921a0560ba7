"""One ModelInfer call to Triton, and how it is ended before its answer has come.

Triton 2.51 dies (SIGSEGV) when a cancel meets the answer of the same call: the server releases the
call's state twice (triton-inference-server/server #8034, fixed by #8078 in later versions). Clients
with deadlines near a model's own time provoke that within a second.

So a call that nobody wants any more is left alone for ``GRACE_S``: nearly every call that Triton
has begun is over by then. What is still there waits in a queue or is slow, and is cancelled: that
its answer comes in just that microsecond is as likely as any other. The deadline is kept here and
not sent, because Triton would cancel the call itself when it passes.
"""

import asyncio
import contextlib
from typing import Generic, TypeVar

import grpc

from gateway.upstream.trace_context import upstream_metadata
from gateway.upstream.triton_errors import to_gateway_error

GRACE_S = 0.1
LATE_S = 600.0  # how long after its deadline gRPC ends a call that nothing else has ended
Request = TypeVar("Request")
Response = TypeVar("Response")


class UnaryCalls(Generic[Request, Response]):
    """The ModelInfer calls to one Triton: ``method`` takes messages, or bytes as they are."""

    def __init__(self, method: grpc.aio.UnaryUnaryMultiCallable) -> None:
        self._method = method
        self._abandoned: set[grpc.aio.UnaryUnaryCall] = set()
        self._none_left = asyncio.Event()
        self._none_left.set()

    async def infer(self, request: Request, timeout_s: float) -> Response:
        """Triton's response. Raises a GatewayError, DeadlineExceeded after ``timeout_s``.
        Cancelling the awaiting task ends the call in Triton, ``GRACE_S`` later at the earliest."""
        loop = asyncio.get_running_loop()
        metadata = upstream_metadata.get()
        options = {"metadata": metadata} if metadata else {}
        call = self._method(request, timeout=timeout_s + LATE_S, **options)
        ended: asyncio.Future[bool] = loop.create_future()
        call.add_done_callback(lambda _: _set(ended, True))
        timer = loop.call_later(timeout_s, _set, ended, False)
        try:
            if not await ended:
                raise to_gateway_error(TimeoutError())
            response: Response = await call
            return response
        except grpc.aio.AioRpcError as error:
            raise to_gateway_error(error) from error
        finally:
            timer.cancel()
            if not call.done():
                self._abandon(call)

    def _abandon(self, call: grpc.aio.UnaryUnaryCall) -> None:
        self._abandoned.add(call)
        self._none_left.clear()
        call.add_done_callback(self._forget)
        asyncio.get_running_loop().call_later(GRACE_S, call.cancel)

    def _forget(self, call: grpc.aio.UnaryUnaryCall) -> None:
        self._abandoned.discard(call)
        if not self._abandoned:
            self._none_left.set()

    async def close(self) -> None:
        """Wait until each call is over, which is ``GRACE_S`` at most, and a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10 * GRACE_S):
                await self._none_left.wait()


def _set(ended: "asyncio.Future[bool]", has_answer: bool) -> None:
    if not ended.done():
        ended.set_result(has_answer)
