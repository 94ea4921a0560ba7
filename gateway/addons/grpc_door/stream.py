"""ModelStreamInfer: each message is checked, and one stream of ours to Triton answers it.

Its permit, and its place in each concurrency limit, are held to the last byte. Requests and
tokens are counted for each message. When nothing moves for ``deadline_s``, the stream is ended.
Triton reads a stream however slowly its answers are read, so at most ``WINDOW`` messages wait for
theirs (of models with one answer to each: nobody can tell how many a decoupled one will give).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from gateway.addons.grpc_door.answer import ANSWER_TAG
from gateway.addons.grpc_door.methods import permitted
from gateway.addons.grpc_door.request import check_request
from gateway.addons.grpc_door.status import as_metadata
from gateway.addons.grpc_door.stream_tokens import StreamTokens
from gateway.addons.grpc_door.wire import Parts
from gateway.core import Gateway
from gateway.errors import GatewayError
from gateway.guard import BYTES_A_TOKEN
from gateway.http.exchange import Exchange
from gateway.http.render import Door, status_of
from gateway.limits.limit import Subject, checks_of
from gateway.models.catalogue import Model
from gateway.upstream import translate

# In Triton's own metadata: an error ends the stream, with its status, instead of being a message of
# it. Triton 2.51 is never told: it dies of it when a decoupled model fails.
STRICT = b"triton_grpc_error"
WINDOW = 32
METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"


class InferStream:
    """One stream of one client."""

    def __init__(self, gateway: Gateway, exchange: Exchange, context: Any) -> None:
        self.gateway = gateway
        self.exchange, self.context = exchange, context
        self._strict = exchange.headers.get(STRICT) == b"true"
        self._held = contextlib.AsyncExitStack()
        self._models: set[str] = set()  # whose concurrency is held
        self._tokens = StreamTokens(gateway.guard)
        self._fault: GatewayError | None = None
        self._begun = False
        self._writing = asyncio.Lock()
        self._window, self._waiting = asyncio.Semaphore(WINDOW), 0

    async def run(self, requests: AsyncIterator[bytes]) -> None:
        """To the end of the stream; GatewayError, or TimeoutError when nothing moved."""
        async with asyncio.timeout(self.gateway.settings.deadline_s) as self._idle, self._held:
            upstream = self._held.enter_context(self.gateway.pool.permit())
            opened = upstream.channel.stream_stream(METHOD)
            call = opened(timeout=self.context.time_remaining())
            self._held.push_async_callback(self._tokens.close)
            self._held.callback(call.cancel)
            self._held.push_async_callback(_end, asyncio.create_task(self._send(requests, call)))
            try:
                async for found in call:
                    answer = await self._tokens.read(found)
                    if answer is not None:
                        await self._write(
                            answer if answer.startswith(ANSWER_TAG) else self._told(answer)
                        )
                    if self._waiting:
                        self._waiting -= 1
                        self._window.release()
            except grpc.aio.AioRpcError as error:
                raise translate(error.code(), error.details() or "") from error
            except asyncio.CancelledError:
                if self._fault is None:
                    raise
                raise self._fault from None

    async def _send(self, requests: AsyncIterator[bytes], call: Any) -> None:
        try:
            async for data in requests:
                self._moved()
                message = await self._checked(data)
                if message is not None:
                    await call.write(message)
            await call.done_writing()
        except GatewayError as error:
            self._fault = error
            call.cancel()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # Triton ended the stream: whoever reads its answers learns why

    async def _checked(self, data: bytes) -> bytes | None:
        """What Triton is told; None when the message was refused, and the client was told so."""
        exchange, identifier, status = self.exchange, "", 200
        try:
            parts = Parts(data)
            identifier, exchange.body_bytes = parts.header.id, len(data)
            model = permitted(self.gateway, exchange, "infer", parts.header)
            check_request(parts, model)
            self.gateway.sequences.put_own(parts.header, exchange.tenant)
            parts.header.model_name = self.gateway.serving(exchange, model, parts.header)
            await self._admit(model, parts)
            if not model.decoupled:
                await self._window.acquire()
                self._waiting += 1
            return parts.message()
        except GatewayError as error:
            status, exchange.fault = status_of(error, Door.V2), error
            if self._strict:
                raise
            await self._write(_refusal(error, identifier, exchange.request_id))
            return None
        finally:
            self.gateway.guard.record(exchange, status)

    async def _admit(self, model: Model, parts: Parts) -> None:
        """The model's first message takes a place to the stream's end; the others come with it."""
        guard, exchange = self.gateway.guard, self.exchange
        if model.name not in self._models:
            admission = await self._held.enter_async_context(guard.admit(exchange, model))
            self._models.add(model.name)
            await self._tokens.follow(parts, model, admission, held=True)
        elif exchange.principal:
            limits = exchange.access.limits(exchange.principal, model.name)
            counted = [limit for limit in limits if limit.kind != "concurrency"]
            subject = Subject(exchange.principal.tenant, exchange.principal.id, model.name)
            tokens = exchange.body_bytes / BYTES_A_TOKEN if model.counts_tokens else 0
            admission = await guard.limiter.admit(checks_of(counted, subject, tokens)).__aenter__()
            await self._tokens.follow(parts, model, admission, held=False)

    async def _write(self, answer: bytes) -> None:
        async with self._writing:  # one write at a time, and it waits for a slow reader
            if not self._begun:
                self._begun = True
                await self.context.send_initial_metadata(as_metadata(self.exchange.limit_headers))
            await self.context.write(answer)
        self._moved()

    def _told(self, answer: bytes) -> bytes:
        """An answer that has an error: Triton's text is replaced by ours."""
        found = service_pb2.ModelStreamInferResponse.FromString(answer)
        if found.error_message:
            fault = translate(grpc.StatusCode.UNKNOWN, found.error_message)
            self._record(fault)
            if self._strict:
                raise fault
            found.error_message = fault.message
        told: bytes = found.SerializeToString()
        return told

    def _record(self, fault: GatewayError) -> None:
        """A message that was let in has failed; with several models, nobody can tell of which."""
        exchange = self.exchange
        exchange.fault = fault
        exchange.model = exchange.model if len(self._models) == 1 else ""
        self.gateway.guard.record(exchange, status_of(fault, Door.V2))

    def _moved(self) -> None:
        now = asyncio.get_running_loop().time()
        self._idle.reschedule(now + self.gateway.settings.deadline_s)


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _refusal(error: GatewayError, identifier: str, request_id: str) -> bytes:
    """As Triton refuses one message of a stream that goes on."""
    answer = service_pb2.ModelStreamInferResponse(
        error_message=f"{error.message} ({error.code}, request {request_id})"
    )
    answer.infer_response.id = identifier
    answer.infer_response.parameters["tidegate_code"].string_param = error.code
    refusal: bytes = answer.SerializeToString()
    return refusal
