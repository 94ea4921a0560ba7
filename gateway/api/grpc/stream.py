"""ModelStreamInfer: each message is a request of its own, and one stream to Triton answers them.

A message is admitted as a unary call is, by the policy and the limits in force when it arrives, and
from then to its last response it holds a slot in the limits and a permit. So an idle stream holds
neither, nor a stream to Triton before its first message.
Triton says which request a response is for by the request's id. We replace it with our own on the
way there: clients may send the same id twice, or none.
Triton reads a stream however slowly its responses are read, so at most ``WINDOW`` messages are in
flight. The permit is released when we have read Triton's last response, the slot in the limits when
the client has. While many responses wait for a client that does not read, we do not read Triton
either, and other requests may use the permits. The stream is ended when nothing moves for
``deadline_s``, or when the client does not read a waiting response for ``send_timeout_s``.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from gateway.api.grpc.caller_bounds import CallerBounds
from gateway.api.grpc.methods import parse_request, permitted_model
from gateway.api.grpc.outgoing import Outgoing
from gateway.api.grpc.request import check_request, timeout_s
from gateway.api.grpc.response import (
    RESPONSE_TAG,
    ResponseParts,
    StreamResponse,
    as_stream_response,
    inner_response,
    request_token_counts,
    version_of,
)
from gateway.api.grpc.status import as_metadata, shortened
from gateway.api.grpc.stream_errors import fault_of
from gateway.api.grpc.wire import RequestParts
from gateway.core import Gateway
from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    Internal,
    NoCapacity,
    Unauthenticated,
    UpstreamError,
)
from gateway.http.request_context import RequestContext
from gateway.limits.limiter import Admission
from gateway.models.catalogue import Model
from gateway.models.metering import Meter
from gateway.render import CLIENT_LEFT, Api, status_of
from gateway.upstream.admission import Turn
from gateway.upstream.affinity import TextWork
from gateway.upstream.server import Upstream
from gateway.upstream.stream_call import EMPTY_FINAL, FINAL, StreamCall
from gateway.upstream.triton_errors import translate

log = logging.getLogger("gateway")
# Triton's own metadata key: an error ends the stream, with a status, instead of being one of its
# messages. We never pass it on: with it, Triton 2.51 crashes when a decoupled model fails.
STRICT = b"triton_grpc_error"
WINDOW = 32
VERSION_BYTES = 1024  # of a response: they have the model's name and version
_SLOW_S = 1.0  # a client that reads nothing for so long is more than slow
_LAST_S = 1.0  # for Triton to end a stream on which it has answered everything


class Message:
    """An admitted message. ``permit`` is held until Triton's last response, ``slot`` (in the
    limits) until the client has read that."""

    __slots__ = (
        "admission",
        "client_id",
        "context",
        "is_late",
        "meter",
        "model",
        "permit",
        "slot",
        "timer",
        "turn",
        "wants_final",
    )

    def __init__(self, context: RequestContext, model: Model, client_id: str) -> None:
        self.context, self.model, self.client_id = context, model, client_id
        self.admission: Admission | None = None
        self.meter: Meter | None = None
        self.slot = contextlib.AsyncExitStack()
        self.permit = contextlib.ExitStack()
        self.turn: Turn | None = None
        self.wants_final = False
        self.timer: asyncio.TimerHandle | None = None  # for its own deadline
        self.is_late = False  # its deadline has passed, and its client has the error


class InferStream:
    """One stream of one client."""

    def __init__(
        self,
        gateway: Gateway,
        caller_bounds: CallerBounds,
        context: RequestContext,
        call: grpc.aio.ServicerContext,
    ) -> None:
        self.gateway, self.caller_bounds = gateway, caller_bounds
        self.context, self.call = context, call
        self._strict = context.headers.get(STRICT) == b"true"
        self._caller = context.principal.id if context.principal else ""
        self._in_flight: dict[bytes, Message] = {}  # by the id sent to Triton
        self._unread: set[Message] = set()  # answered, but not completely read by the client
        self._count = 0
        self._window = asyncio.Semaphore(WINDOW)
        self._all_answered = asyncio.Event()
        self._all_answered.set()
        self._upstream: Upstream | None = None
        self._is_decoupled = False  # whether the stream to Triton is for decoupled models
        self._call: StreamCall | None = None
        self._reader: asyncio.Task[None] | None = None
        self._refusals: set[asyncio.Task[None]] = set()
        self._fault: GatewayError | None = None
        self._task: asyncio.Task[Any] | None = None
        self._has_started = False
        # The first message to get a response: its limits go into the stream's metadata.
        self._first_context: RequestContext | None = None
        self._client_reads = asyncio.Event()  # clear while responses wait for the client
        self._client_reads.set()
        principal = context.principal
        self._outgoing = Outgoing(
            self._write,
            self._not_read,
            gateway.settings.send_timeout_s,
            lambda size: (
                gateway.memory_budget.counted(principal, size) if principal else nullcontext()
            ),
        )
        self._writer: asyncio.Task[None] | None = None
        self._last_move = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._is_closing = False
        # Each message is a request with the stream's id.
        headers = [header for header in context.scope["headers"] if header[0] != b"x-request-id"]
        self._headers = [*headers, (b"x-request-id", context.request_id.encode())]

    async def run(self, requests: AsyncIterator[bytes]) -> None:
        """Serve the stream to its end. Raises the GatewayError that ended it, if any."""
        self._task = asyncio.current_task()
        self.caller_bounds.open_stream(self._caller, self.end)
        self._writer = asyncio.create_task(self._write_all())
        self._moved()
        self._watch_idle()
        access_control = self.gateway.access_control
        try:
            with access_control.watching(self.context, self.end, self._models, self._admissions):
                await self._take_all(requests)
        except asyncio.CancelledError:
            if self._fault is None or self._task is None:
                raise
            self._task.uncancel()
            raise self._fault from None
        finally:
            self._is_closing = True
            if self._idle_timer:
                self._idle_timer.cancel()
            self.caller_bounds.leave(self._caller, self.end)
            await self._close()

    def end(self, fault: GatewayError) -> None:
        """End the stream with this error, whatever it is waiting for."""
        if self._fault is None and self._task is not None and not self._is_closing:
            self._fault = fault
            self._task.cancel()

    @property
    def _status(self) -> int:
        """Of the messages that the stream leaves unanswered when it ends."""
        return status_of(self._fault, Api.V2) if self._fault else CLIENT_LEFT

    def _models(self) -> set[str]:
        return {message.model.name for message in self._open_messages()}

    def _admissions(self) -> list[Admission]:
        admissions = (message.admission for message in self._open_messages())
        return [admission for admission in admissions if admission is not None]

    def _open_messages(self) -> list[Message]:
        return [*self._in_flight.values(), *self._unread]

    async def _take_all(self, requests: AsyncIterator[bytes]) -> None:
        while True:
            await self._window.acquire()
            data = await anext(requests, None)
            if data is None:
                break
            self._moved()
            if not await self._take(data):
                self._window.release()
        await self._all_answered.wait()
        await self._outgoing.drained()

    async def _take(self, data: bytes) -> bool:
        """Whether the message is now in flight: if not, the client has been sent the error."""
        context = self._request(len(data))
        identifier = ""
        status = 200
        try:
            await self.gateway.access_control.identify(context)
            parts = parse_request(self.gateway, context, data)
            identifier = parts.header.id
            model = permitted_model(self.gateway, context, "infer", parts.header)
            context.shorten_deadline(timeout_s(parts))
            check_request(parts, model)
            self.gateway.sequences.put_own(parts.header, context.tenant)
            parts.header.model_name = self.gateway.serving(context, model, parts.header)
            await self._start(Message(context, model, identifier), parts)
            return True
        except GatewayError as error:
            status = status_of(error, Api.V2)
            context.fault = self.context.fault = error
            self.gateway.finished(context, status)
            if self._strict or isinstance(error, Unauthenticated):
                raise
            self._first_context = self._first_context or context
            await self._outgoing.put(self._refusal(error, identifier))
            return False
        except asyncio.CancelledError:
            if all(message.context is not context for message in self._in_flight.values()):
                self.gateway.finished(context, self._status)
            raise
        finally:
            self.context.model = context.model
            self.context.action = context.action
            self.gateway.access_control.record(context, status)

    def _request(self, size: int) -> RequestContext:
        """The context of a message of ``size`` bytes, by the rules in force now."""
        scope = {**self.context.scope, "headers": self._headers}
        context = self.gateway.context(scope, self.context.receive)
        context.body_bytes = size
        context.api, context.route = self.context.api, self.context.route
        self.context.is_stream = True
        return context

    async def _start(self, message: Message, parts: RequestParts) -> None:
        access_control, model = self.gateway.access_control, message.model
        message.context.count_buffered(0)
        await self._client_reads.wait()
        async with contextlib.AsyncExitStack() as slot:
            admission = await slot.enter_async_context(access_control.admit(message.context, model))
            message.admission = admission
            message.meter = access_control.meter(message.context, admission, model)
            if message.meter:
                request_token_counts(parts, message.meter)
            if self._call is not None and self._is_decoupled is not model.decoupled:
                # Before it has a turn, which would be nobody's for as long as a chat may last.
                await self._all_answered.wait()
            raws = parts.text_elements() if model.is_language_model else ()
            text = self.gateway.text_work(message.context, model, parts.header, raws)
            with contextlib.ExitStack() as permit:
                name = parts.header.model_name
                turn = await self.gateway.turn(message.context, model, name, text)
                message.turn = permit.enter_context(turn)
                upstream = permit.enter_context(self._permit(message, parts, text))
                message.context.sent_to(upstream.address)
                call = await self._call_to(upstream, model.decoupled)
                message.permit = permit.pop_all()
            message.slot = slot.pop_all()
        upstream_id = str(self._count)
        self._count += 1
        parts.header.id = upstream_id
        if model.decoupled:
            empty_final = parts.header.parameters[EMPTY_FINAL]
            message.wants_final, empty_final.bool_param = empty_final.bool_param, True
        self._in_flight[upstream_id.encode()] = message
        self._all_answered.clear()
        self.caller_bounds.leave(self._caller, self.end)
        self._set_timer(message)
        admission.started()
        # The task that reads the responses learns of an error here from the call.
        with contextlib.suppress(grpc.RpcError):
            await call.write(parts.message())

    def _permit(
        self, message: Message, parts: RequestParts, text: TextWork | None
    ) -> AbstractContextManager[Upstream]:
        """A permit of the replica that this stream already uses, while it is available; for a
        message of a sequence, of the replica that has the sequence."""
        upstream = self._upstream if self._call is not None else None
        return self.gateway.permit(message.context, message.model, parts.header, upstream, text)

    async def _call_to(self, upstream: Upstream, decoupled: bool) -> StreamCall:
        """The stream to this replica. There is one replica at a time, so responses keep their
        order, and a message for another replica waits for those in flight. So does one for a
        decoupled model behind one for another model: both on one stream crash Triton 2.51."""
        if self._call is not None and (
            self._upstream is not upstream or self._is_decoupled is not decoupled
        ):
            await self._all_answered.wait()
            await self._leave_upstream()
        if self._call is None:
            self._upstream, self._is_decoupled = upstream, decoupled
            self._call = upstream.open_stream()
            self._reader = asyncio.create_task(self._read(self._call))
        return self._call

    async def _read(self, call: StreamCall) -> None:
        """Read Triton's responses to their end; messages in flight then fail."""
        fault: GatewayError = UpstreamError("the server ended the stream: try again")
        try:
            while (response := await call.read()) is not None:
                if not self._is_closing:
                    await self._pass_on(response)
        except grpc.aio.AioRpcError as error:
            fault = translate(error.code(), error.details() or "")
        except asyncio.CancelledError:
            pass  # by us
        if self._call is call:
            self._call = None
            if self._in_flight:
                await self._outgoing.drained()  # the responses before the failure
                self.context.fault = fault
                self.end(fault)

    async def _pass_on(self, data: bytes) -> None:
        """Send one response of Triton to the client; a failure here ends the stream."""
        try:
            if data.startswith(RESPONSE_TAG):
                await self._pass_on_response(data)
            else:
                await self._pass_on_error(data)
        except GatewayError as error:
            self.end(error)
        except Exception as error:
            log.error("%s a response failed", self.context.request_id, exc_info=error)
            self.end(Internal("the gateway failed: report the request id"))

    async def _pass_on_response(self, data: bytes) -> None:
        response = StreamResponse(data)
        upstream_id, is_last = response.id, response.is_last
        message = self._in_flight.get(upstream_id)
        if message is None:
            return  # it came after the last one
        is_last = is_last or not message.model.decoupled
        if not message.context.first_response_at and response.has_outputs:
            message.context.first_response_at = time.perf_counter()
            message.context.version = version_of(bytes(inner_response(data)[:VERSION_BYTES]))
            if message.turn:
                message.turn.has_responded()
        if message.meter:
            parts = ResponseParts(inner_response(data))
            parts.read(message.meter)
            if message.meter.hidden:
                response = StreamResponse(as_stream_response(parts.message()))
        if is_last:
            _leave(message.permit, None)
        is_empty_final = is_last and message.model.decoupled and not response.has_outputs
        reply = None
        if not message.is_late and (message.wants_final or not is_empty_final):
            reply = response.for_client(message.client_id.encode())
        await self._reply(upstream_id, reply, is_last=is_last)

    async def _pass_on_error(self, data: bytes) -> None:
        """Triton's text goes to the log; the client reads ours."""
        stream_response = service_pb2.ModelStreamInferResponse.FromString(data)
        response = stream_response.infer_response
        upstream_id = response.id.encode()
        message = self._in_flight.get(upstream_id)
        if message is None:
            return
        whose = f"message {message.client_id[:64]!r} to {message.model.name}: "
        fault = fault_of(stream_response.error_message, whose)
        flag = response.parameters.get(FINAL)
        is_last = not message.model.decoupled or flag is None or flag.bool_param
        if is_last:
            _leave(message.permit, fault)
        reply = None
        if not message.is_late:
            self._record(message, fault)
            if self._strict:
                await self._outgoing.drained()
                self.end(fault)
                return
            reply = self._refusal(fault, message.client_id, response)
        await self._reply(upstream_id, reply, is_last=is_last, fault=fault)

    async def _reply(
        self,
        upstream_id: bytes,
        reply: bytes | None,
        *,
        is_last: bool,
        fault: GatewayError | None = None,
    ) -> None:
        message = self._in_flight[upstream_id]
        if reply is not None:
            self._first_context = self._first_context or message.context
        if not is_last:
            if reply is not None:
                with self._waiting():
                    await self._outgoing.put(reply)
            return
        self._answered(upstream_id, fault)
        with self._waiting():
            await self._outgoing.put(reply, lambda: self._release(message, fault))
        if not self._in_flight:
            self._all_answered.set()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Enter around a wait for the client to read its responses. Triton is not read meanwhile,
        so messages in flight wait too: other requests may use their permits. The stream takes no
        more messages, and soon counts as a silent one."""
        if self._outgoing.has_room():
            yield
            return
        self._client_reads.clear()
        silent_timer = asyncio.get_running_loop().call_later(
            _SLOW_S, self.caller_bounds.fell_silent, self._caller, self.end
        )
        turns = [message.turn for message in self._in_flight.values() if message.turn]
        try:
            with self.gateway.pool.set_aside(self._upstream, len(self._in_flight)):
                for turn in turns:
                    turn.lend()
                yield
        finally:
            for turn in turns:
                turn.take_back()
            self._client_reads.set()
            silent_timer.cancel()
            self.caller_bounds.leave(self._caller, self.end)

    def _set_timer(self, message: Message) -> None:
        """For a message's own ``timeout``. The stream as a whole has no deadline while it moves."""
        timeout_s = message.context.deadline - message.context.started
        if timeout_s < self.gateway.settings.deadline_s:
            loop = asyncio.get_running_loop()
            message.timer = loop.call_later(timeout_s, self._time_out, message)

    def _time_out(self, message: Message) -> None:
        """Send the client its error; the message stays in flight until Triton has finished it."""
        message.is_late = True
        fault = DeadlineExceeded("the model did not answer in time: try again or send less")
        self._record(message, fault)
        if self._strict:
            self.end(fault)
            return
        refusal = self._refusal(fault, message.client_id)
        self._first_context = self._first_context or message.context
        task = asyncio.create_task(self._outgoing.put(refusal))
        self._refusals.add(task)
        task.add_done_callback(self._refusals.discard)

    def _answered(self, upstream_id: bytes, fault: GatewayError | None, status: int = 0) -> None:
        """Triton has sent the message's last response, or will send none because of ``fault``; a
        non-zero ``status`` is then what became of it."""
        message = self._in_flight.pop(upstream_id)
        context = message.context
        context.upstream_s = time.perf_counter() - context.sent_at
        fault_of_message = context.fault or fault
        status = status or (status_of(fault_of_message, Api.V2) if fault_of_message else 200)
        self.gateway.finished(context, status)
        self._unread.add(message)
        if message.timer:
            message.timer.cancel()
        _leave(message.permit, fault)

    async def _release(self, message: Message, fault: GatewayError | None = None) -> None:
        """The client has read the message's last response, or will get none."""
        if message not in self._unread:
            return
        self._unread.discard(message)
        if fault and message.meter:
            message.meter.settle()
        await message.slot.__aexit__(type(fault) if fault else None, fault, None)
        self._window.release()
        if not self._in_flight and not self._unread and not self._is_closing:
            self.caller_bounds.fell_silent(self._caller, self.end)

    async def _write_all(self) -> None:
        try:
            await self._outgoing.run()
        except Exception as error:
            log.error("%s a response failed", self.context.request_id, exc_info=error)
            self.end(Internal("the gateway failed: report the request id"))

    def _not_read(self) -> None:
        self.end(DeadlineExceeded("you did not read the responses in time: open the stream again"))

    async def _write(self, response: bytes) -> None:
        # It fails when the client has left: gRPC then cancels the task of the stream.
        with contextlib.suppress(grpc.aio.BaseError):
            if not self._has_started and self._first_context:
                self._has_started = True
                headers = as_metadata(self._first_context.limit_headers)
                await self.call.send_initial_metadata(headers)
            await self.call.write(response)
        self._moved()

    def _record(self, message: Message, fault: GatewayError) -> None:
        """Record that an admitted message has failed."""
        message.context.fault = self.context.fault = fault
        self.gateway.access_control.record(message.context, status_of(fault, Api.V2))

    def _moved(self) -> None:
        self._last_move = asyncio.get_running_loop().time()

    def _watch_idle(self) -> None:
        """End the stream when nothing has moved for the deadline."""
        loop = asyncio.get_running_loop()
        remaining_s = self._last_move + self.gateway.settings.deadline_s - loop.time()
        if remaining_s > 0:
            self._idle_timer = loop.call_later(remaining_s, self._watch_idle)
        else:
            self.end(DeadlineExceeded("nothing moved on the stream: open it again"))

    async def _leave_upstream(self) -> None:
        """End the stream to Triton, on which everything was answered."""
        call, reader = self._call, self._reader
        self._call = self._reader = None
        if call is None or reader is None:
            return
        with contextlib.suppress(grpc.RpcError):
            await call.done_writing()
        await asyncio.wait({reader}, timeout=_LAST_S)
        reader.cancel()
        await call.end()

    async def _close(self) -> None:
        """Give up the messages in flight, after ending the stream to Triton."""
        for task in self._refusals:
            task.cancel()
        try:
            if self._in_flight and self._call is not None:
                call, self._call = self._call, None
                if self._reader:
                    self._reader.cancel()
                await call.end()
            else:
                await self._leave_upstream()
        finally:
            upstream_failed = isinstance(self._fault, UpstreamError | NoCapacity)
            if self._writer:
                self._writer.cancel()
                self._writer = None  # it references the response that was not read
            fault = self._fault if upstream_failed else None
            for message in list(self._unread):
                await self._release(message)
            for upstream_id in list(self._in_flight):
                self._answered(upstream_id, fault, self._status)
            for message in list(self._unread):
                await self._release(message, fault)

    def _refusal(
        self,
        error: GatewayError,
        identifier: str,
        response: service_pb2.ModelInferResponse | None = None,
    ) -> bytes:
        """The error for one message of a stream that goes on, as Triton sends it, serialised."""
        text = f"{shortened(error.message)} ({error.code}, request {self.context.request_id})"
        refusal = service_pb2.ModelStreamInferResponse(error_message=text)
        if response is not None:
            refusal.infer_response.CopyFrom(response)
        refusal.infer_response.id = identifier
        refusal.infer_response.parameters["tidegate_code"].string_param = error.code
        data: bytes = refusal.SerializeToString()
        return data


def _leave(permit: contextlib.ExitStack, fault: GatewayError | None) -> None:
    """Release the permit, telling the pool how the request ended; a second call does nothing."""
    with contextlib.suppress(GatewayError):
        permit.__exit__(type(fault) if fault else None, fault, None)
