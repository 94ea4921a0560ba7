"""Answers that come in pieces: one gRPC stream a request, its permit held to the last piece."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from gateway.core import Gateway
from gateway.errors import UpstreamBroke
from gateway.http.exchange import Exchange
from gateway.models.catalogue import Model
from gateway.upstream import Upstream, told, translate

TOTAL_S = 600.0  # no answer takes longer, however steadily its pieces come
# With it Triton says of each stream when it has ended, even if it ends without another output.
EMPTY_FINAL, FINAL = "triton_enable_empty_final_response", "triton_final_response"


async def answers(
    gateway: Gateway, exchange: Exchange, model: Model, message: service_pb2.ModelInferRequest
) -> AsyncGenerator[service_pb2.ModelInferResponse, None]:
    """The model's answers as they come; leaving the generator (``aclosing``) ends it in Triton.

    The gateway's deadline bounds each wait for the next one, ``TOTAL_S`` the whole. Raises
    GatewayErrors, DeadlineExceeded among them.
    """
    message.model_name = gateway.serving(exchange, model)
    idle_s, asked = exchange.remaining_s(), time.perf_counter()
    with gateway.pool.permit() as upstream:
        async with aclosing(_stream(upstream, message, idle_s)) as found:
            async for answer in found:
                if not exchange.upstream_s:
                    exchange.upstream_s = time.perf_counter() - asked
                answer.model_name = model.name
                yield answer


async def _stream(
    upstream: Upstream, request: service_pb2.ModelInferRequest, idle_s: float
) -> AsyncGenerator[service_pb2.ModelInferResponse, None]:
    """A stream of its own for one request; it is read only as fast as it is asked."""
    request.parameters[EMPTY_FINAL].bool_param = True
    call = upstream.stub.ModelStreamInfer(timeout=TOTAL_S)
    try:
        await call.write(request)
        await call.done_writing()
        final = False
        while not final:
            async with asyncio.timeout(idle_s):
                answer = await call.read()
            final = _is_final(answer)
            if answer.infer_response.outputs:
                yield answer.infer_response
    except (grpc.aio.AioRpcError, TimeoutError) as error:
        raise told(error) from error
    finally:
        call.cancel()


def _is_final(answer: Any) -> bool:
    """Whether a stream's answer is its last; UpstreamBroke when it is none."""
    if answer is grpc.aio.EOF:
        raise UpstreamBroke("the model stopped in the middle of its answer: try again")
    if answer.error_message:
        raise translate(grpc.StatusCode.UNKNOWN, answer.error_message)
    return bool(answer.infer_response.parameters[FINAL].bool_param)
