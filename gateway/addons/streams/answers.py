"""Answers that come in pieces: one gRPC stream a request, its permit held to the last piece."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from tritonclient.grpc import service_pb2

from gateway.core import Gateway
from gateway.http.exchange import Exchange
from gateway.models.catalogue import Model

TOTAL_S = 600.0  # no answer takes longer, however steadily its pieces come


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
        async with aclosing(upstream.stream(message, TOTAL_S, idle_s)) as found:
            async for answer in found:
                if not exchange.upstream_s:
                    exchange.upstream_s = time.perf_counter() - asked
                answer.model_name = model.name
                yield answer
