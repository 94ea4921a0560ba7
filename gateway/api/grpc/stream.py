"""ModelStreamInfer: each message is a request of its own, and one stream to Triton answers them.

A message is let in as a unary call is, by the policy and the limits that are in force when it
comes, and from then to its last answer it holds its place in the limits and a permit. So a stream
on which nothing is under way holds neither, nor a stream to Triton before its first message.
Triton tells whose an answer is by the request's id, which is ours on the way there: clients may
send the same twice, or none.
Triton reads a stream however slowly its answers are read, so at most ``WINDOW`` messages are under
way. The permit is given back when Triton's last answer was read, the place in the limits when the
client took it. While the client takes nothing of much that waits for it Triton is not read either,
and the permits are others' to have. When nothing moves for ``deadline_s``, or the client takes
nothing of what waits for ``answer_patience_s``, the stream is ended.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from gateway.api.grpc.holdings import Holdings
from gateway.api.grpc.methods import parts_of, permitted
from gateway.api.grpc.outgoing import Outgoing
from gateway.api.grpc.request import check_request, timeout_s
from gateway.api.grpc.response import (
    ANSWER_TAG,
    AnswerParts,
    StreamAnswer,
    ask_for_tokens,
    streamed,
    within,
)
from gateway.api.grpc.status import as_metadata, shortened
from gateway.api.grpc.stream_errors import fault_of
from gateway.api.grpc.wire import Parts
from gateway.core import Gateway
from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    Internal,
    NoCapacity,
    Unauthenticated,
    UpstreamError,
)
from gateway.http.render import Api, status_of
from gateway.http.request_context import RequestContext
from gateway.limits.limiter import Admission
from gateway.models.catalogue import Model
from gateway.upstream.server import Upstream, end_stream, translate
from gateway.upstream.stream_call import EMPTY_FINAL, FINAL, StreamCall

log = logging.getLogger("gateway")
# In Triton's own metadata: an error ends the stream, with its status, instead of being a message of
# it. Triton 2.51 is never told: it dies of it when a decoupled model fails.
STRICT = b"triton_grpc_error"
WINDOW = 32
METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
_SLOW_S = 1.0  # a client that takes nothing for so long is more than slow
_LAST_S = 1.0  # for Triton to end a stream of which it has answered everything


class Message:
    """One that was let in; ``permit`` has its permit, to its last answer, and ``held`` its place in
    the limits, until the client took that."""

    __slots__ = (
        "admission",
        "client_id",
        "context",
        "held",
        "is_late",
        "meter",
        "model",
        "permit",
        "timer",
        "wants_final",
    )

    def __init__(self, context: RequestContext, model: Model, client_id: str) -> None:
        self.context, self.model, self.client_id = context, model, client_id
        self.admission: Admission | None = None
        self.meter: Any = None
        self.held = contextlib.AsyncExitStack()
        self.permit = contextlib.ExitStack()
        self.wants_final = False
        self.timer: asyncio.TimerHandle | None = None  # to its own deadline
        self.is_late = False  # its deadline has passed, and its client was told so


class InferStream:
    """One stream of one client."""

    def __init__(
        self, gateway: Gateway, holdings: Holdings, context: RequestContext, call: Any
    ) -> None:
        self.gateway, self.holdings = gateway, holdings
        self.context, self.call = context, call
        self._strict = context.headers.get(STRICT) == b"true"
        self._caller = context.principal.id if context.principal else ""
        self._under_way: dict[bytes, Message] = {}  # by the id that Triton is told
        self._untaken: set[Message] = set()  # answered, but the client has not taken it all
        self._count = 0
        self._window = asyncio.Semaphore(WINDOW)
        self._all_answered = asyncio.Event()
        self._all_answered.set()
        self._upstream: Upstream | None = None
        self._is_decoupled = False  # what the stream to Triton carries messages to
        self._call: StreamCall | None = None
        self._reading: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()
        self._fault: GatewayError | None = None
        self._task: asyncio.Task[Any] | None = None
        self._begun = False
        self._headers_of: RequestContext | None = None  # the message whose limits the stream tells
        self._is_read = asyncio.Event()  # not set while answers wait that the client does not take
        self._is_read.set()
        principal = context.principal
        self._outgoing = Outgoing(
            self._write,
            self._not_read,
            gateway.settings.answer_patience_s,
            lambda size: gateway.held.counted(principal, size) if principal else nullcontext(),
        )
        self._writing: asyncio.Task[None] | None = None
        self._last_move = 0.0
        self._idle: asyncio.TimerHandle | None = None
        self._is_closing = False
        # Each message is a request with the stream's id.
        given = [each for each in context.scope["headers"] if each[0] != b"x-request-id"]
        self._headers = [*given, (b"x-request-id", context.request_id.encode())]

    async def run(self, requests: AsyncIterator[bytes]) -> None:
        """To the end of the stream; GatewayError for what ended it."""
        self._task = asyncio.current_task()
        self.holdings.open_stream(self._caller, self.end)
        self._writing = asyncio.create_task(self._write_all())
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
            if self._idle:
                self._idle.cancel()
            self.holdings.leave(self._caller, self.end)
            await self._close()

    def end(self, fault: GatewayError) -> None:
        """End the stream with this, wherever it waits."""
        if self._fault is None and self._task is not None and not self._is_closing:
            self._fault = fault
            self._task.cancel()

    def _models(self) -> set[str]:
        return {message.model.name for message in self._held()}

    def _admissions(self) -> list[Admission]:
        found = (message.admission for message in self._held())
        return [admission for admission in found if admission is not None]

    def _held(self) -> list[Message]:
        return [*self._under_way.values(), *self._untaken]

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
        """Whether the message is under way now: if not, the client was told why."""
        context, identifier, status = self._request(len(data)), "", 200
        try:
            await self.gateway.access_control.identify(context)
            parts = parts_of(self.gateway, context, data)
            identifier = parts.header.id
            model = permitted(self.gateway, context, "infer", parts.header)
            context.shorten_deadline(timeout_s(parts))
            check_request(parts, model)
            self.gateway.sequences.put_own(parts.header, context.tenant)
            parts.header.model_name = self.gateway.serving(context, model, parts.header)
            await self._start(Message(context, model, identifier), parts)
            return True
        except GatewayError as error:
            status, context.fault, self.context.fault = status_of(error, Api.V2), error, error
            if self._strict or isinstance(error, Unauthenticated):
                raise
            self._headers_of = self._headers_of or context
            await self._outgoing.put(self._refusal(error, identifier))
            return False
        finally:
            self.context.model, self.context.action = context.model, context.action
            self.gateway.access_control.record(context, status)

    def _request(self, size: int) -> RequestContext:
        """The message as a request of its own, by the rules that are in force now."""
        scope = {**self.context.scope, "headers": self._headers}
        context = self.gateway.context(scope, self.context.receive)
        context.body_bytes = size
        return context

    async def _start(self, message: Message, parts: Parts) -> None:
        access_control, model = self.gateway.access_control, message.model
        message.context.hold(0)
        await self._is_read.wait()
        async with contextlib.AsyncExitStack() as held:
            admission = await held.enter_async_context(access_control.admit(message.context, model))
            message.admission, message.meter = admission, access_control.meter(admission, model)
            if message.meter:
                ask_for_tokens(parts, message.meter)
            with contextlib.ExitStack() as permit:
                upstream = permit.enter_context(self._permit(message, parts))
                call = await self._call_to(upstream, model.decoupled)
                message.permit = permit.pop_all()
            message.held = held.pop_all()
        own_id = str(self._count)
        self._count += 1
        parts.header.id = own_id
        if model.decoupled:
            asked = parts.header.parameters[EMPTY_FINAL]
            message.wants_final, asked.bool_param = asked.bool_param, True
        self._under_way[own_id.encode()] = message
        self._all_answered.clear()
        self.holdings.leave(self._caller, self.end)
        self._set_timer(message)
        admission.started()
        # What goes wrong here, whoever reads the answers learns from the call.
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            await call.write(parts.message())

    def _permit(self, message: Message, parts: Parts) -> AbstractContextManager[Upstream]:
        """Of the replica that this stream is at already, as long as it is there; of a sequence's
        message, of the one that has the sequence."""
        at = self._upstream if self._call is not None else None
        return self.gateway.permit(message.context, message.model, parts.header, at)

    async def _call_to(self, upstream: Upstream, decoupled: bool) -> StreamCall:
        """The stream to this replica. A stream is at one replica at a time: answers keep their
        order so, and what must go elsewhere waits for what is under way. So does a decoupled
        model's message behind another's: Triton 2.51 dies of both kinds on one stream."""
        if self._call is not None and (
            self._upstream is not upstream or self._is_decoupled is not decoupled
        ):
            await self._all_answered.wait()
            await self._leave_upstream()
        if self._call is None:
            self._upstream, self._is_decoupled = upstream, decoupled
            self._call = StreamCall(upstream.stream_ends, upstream.channel.stream_stream(METHOD)())
            self._reading = asyncio.create_task(self._read(self._call))
        return self._call

    async def _read(self, call: StreamCall) -> None:
        """Triton's answers to their end; what is under way then has none."""
        fault: GatewayError = UpstreamError("the server ended the stream: try again")
        try:
            while (found := await call.read()) is not grpc.aio.EOF:
                if not self._is_closing:
                    await self._pass_on(found)
        except grpc.aio.AioRpcError as error:
            fault = translate(error.code(), error.details() or "")
        except (asyncio.CancelledError, grpc.RpcError, asyncio.InvalidStateError):
            pass  # we have cancelled it
        if self._call is call:
            self._call = None
            if self._under_way:
                await self._outgoing.drained()  # what it did answer
                self.context.fault = fault
                self.end(fault)

    async def _pass_on(self, answer: bytes) -> None:
        """What goes wrong here ends the stream, and what still comes of it is not looked at."""
        try:
            await self._answer(answer)
        except GatewayError as error:
            self.end(error)
        except Exception as error:
            log.error("%s an answer failed", self.context.request_id, exc_info=error)
            self.end(Internal("the gateway failed: report the request id"))

    async def _answer(self, answer: bytes) -> None:
        if not answer.startswith(ANSWER_TAG):
            await self._error(answer)
            return
        found = StreamAnswer(answer)
        own_id, is_last = found.id, found.is_last
        message = self._under_way.get(own_id)
        if message is None:
            return  # it came behind the last one
        is_last = is_last or not message.model.decoupled
        if message.meter:
            parts = AnswerParts(within(answer))
            parts.read(message.meter)
            if message.meter.hidden:
                found = StreamAnswer(streamed(parts.message()))
        if is_last:
            _leave(message.permit, None)
        says_nothing = is_last and message.model.decoupled and not found.has_outputs
        reply = None
        if not message.is_late and (message.wants_final or not says_nothing):
            reply = found.for_client(message.client_id.encode())
        await self._tell(own_id, reply, is_last=is_last)

    async def _error(self, answer: bytes) -> None:
        """Triton's text is for the log; the client reads ours."""
        found = service_pb2.ModelStreamInferResponse.FromString(answer)
        response = found.infer_response
        own_id = response.id.encode()
        message = self._under_way.get(own_id)
        if message is None:
            return
        whose = f"message {message.client_id[:64]!r} to {message.model.name}: "
        fault = fault_of(found.error_message, whose)
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
        await self._tell(own_id, reply, is_last=is_last, fault=fault)

    async def _tell(
        self,
        own_id: bytes,
        reply: bytes | None,
        *,
        is_last: bool,
        fault: GatewayError | None = None,
    ) -> None:
        message = self._under_way[own_id]
        if reply is not None:
            self._headers_of = self._headers_of or message.context
        if not is_last:
            if reply is not None:
                with self._waiting():
                    await self._outgoing.put(reply)
            return
        self._answered(own_id, fault)
        with self._waiting():
            await self._outgoing.put(reply, lambda: self._release(message, fault))
        if not self._under_way:
            self._all_answered.set()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Around a wait for the client to take what it was answered. Triton is not read meanwhile,
        so what is under way waits too: it needs no permits, another one's requests may have them.
        The stream takes no more messages, and soon counts as one on which nothing moves."""
        if self._outgoing.has_room():
            yield
            return
        self._is_read.clear()
        fell_silent = asyncio.get_running_loop().call_later(
            _SLOW_S, self.holdings.fell_silent, self._caller, self.end
        )
        try:
            with self.gateway.pool.set_aside(self._upstream, len(self._under_way)):
                yield
        finally:
            self._is_read.set()
            fell_silent.cancel()
            self.holdings.leave(self._caller, self.end)

    def _set_timer(self, message: Message) -> None:
        """A message's own ``timeout``: what bounds the whole is that something moves."""
        left_s = message.context.deadline - message.context.started
        if left_s < self.gateway.settings.deadline_s:
            loop = asyncio.get_running_loop()
            message.timer = loop.call_later(left_s, self._too_late, message)

    def _too_late(self, message: Message) -> None:
        """The client has its error, but what Triton works on is under way to its end."""
        message.is_late = True
        fault = DeadlineExceeded("the model did not answer in time: try again or send less")
        self._record(message, fault)
        if self._strict:
            self.end(fault)
            return
        refusal = self._refusal(fault, message.client_id)
        self._headers_of = self._headers_of or message.context
        task = asyncio.create_task(self._outgoing.put(refusal))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    def _answered(self, own_id: bytes, fault: GatewayError | None) -> None:
        """Triton has said its last of the message, or will say nothing because of ``fault``."""
        message = self._under_way.pop(own_id)
        self._untaken.add(message)
        if message.timer:
            message.timer.cancel()
        _leave(message.permit, fault)

    async def _release(self, message: Message, fault: GatewayError | None = None) -> None:
        """The client took the message's last answer, or will have none."""
        if message not in self._untaken:
            return
        self._untaken.discard(message)
        if fault and message.meter:
            message.meter.settle()
        await message.held.__aexit__(type(fault) if fault else None, fault, None)
        self._window.release()
        if not self._under_way and not self._untaken and not self._is_closing:
            self.holdings.fell_silent(self._caller, self.end)

    async def _write_all(self) -> None:
        try:
            await self._outgoing.run()
        except Exception as error:
            log.error("%s an answer failed", self.context.request_id, exc_info=error)
            self.end(Internal("the gateway failed: report the request id"))

    def _not_read(self) -> None:
        self.end(DeadlineExceeded("you did not read the answers in time: open the stream again"))

    async def _write(self, answer: bytes) -> None:
        # It fails when the client has left: gRPC then cancels the task of the stream.
        with contextlib.suppress(grpc.aio.BaseError):
            if not self._begun and self._headers_of:
                self._begun = True
                headers = as_metadata(self._headers_of.limit_headers)
                await self.call.send_initial_metadata(headers)
            await self.call.write(answer)
        self._moved()

    def _record(self, message: Message, fault: GatewayError) -> None:
        """A message that was let in has failed."""
        message.context.fault = self.context.fault = fault
        self.gateway.access_control.record(message.context, status_of(fault, Api.V2))

    def _moved(self) -> None:
        self._last_move = asyncio.get_running_loop().time()

    def _watch_idle(self) -> None:
        """End the stream when nothing has moved for the deadline."""
        loop, deadline_s = asyncio.get_running_loop(), self.gateway.settings.deadline_s
        left_s = self._last_move + deadline_s - loop.time()
        if left_s > 0:
            self._idle = loop.call_later(left_s, self._watch_idle)
        else:
            self.end(DeadlineExceeded("nothing moved on the stream: open it again"))

    async def _leave_upstream(self) -> None:
        """End the stream to Triton, of which everything was answered."""
        call, reading = self._call, self._reading
        self._call = self._reading = None
        if call is None or reading is None:
            return
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            await call.done_writing()
        await asyncio.wait({reading}, timeout=_LAST_S)
        reading.cancel()
        await end_stream(call)

    async def _close(self) -> None:
        """What is still under way is given up, once Triton was told so."""
        for task in self._telling:
            task.cancel()
        try:
            if self._under_way and self._call is not None:
                call, self._call = self._call, None
                if self._reading:
                    self._reading.cancel()
                await end_stream(call)
            else:
                await self._leave_upstream()
        finally:
            broke = isinstance(self._fault, UpstreamError | NoCapacity)
            if self._writing:
                self._writing.cancel()
                self._writing = None  # it knows the answer that was not taken
            fault = self._fault if broke else None
            for message in list(self._untaken):
                await self._release(message)
            for own_id in list(self._under_way):
                self._answered(own_id, fault)
            for message in list(self._untaken):
                await self._release(message, fault)

    def _refusal(self, error: GatewayError, identifier: str, response: Any = None) -> bytes:
        """As Triton refuses one message of a stream that goes on."""
        text = f"{shortened(error.message)} ({error.code}, request {self.context.request_id})"
        answer = service_pb2.ModelStreamInferResponse(error_message=text)
        if response is not None:
            answer.infer_response.CopyFrom(response)
        answer.infer_response.id = identifier
        answer.infer_response.parameters["tidegate_code"].string_param = error.code
        refusal: bytes = answer.SerializeToString()
        return refusal


def _leave(permit: contextlib.ExitStack, fault: GatewayError | None) -> None:
    """Leaving a permit tells the pool how the request ended; a second time it does nothing."""
    with contextlib.suppress(GatewayError):
        permit.__exit__(type(fault) if fault else None, fault, None)
