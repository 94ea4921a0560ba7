"""Streamed responses: what V2's generate and OpenAI's text routes share.

``stream_responses`` reads one gRPC stream per request and holds its permit to the last response;
``EventStream`` sends them as server-sent events, at the pace at which the client reads.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing

from starlette.types import Send
from tritonclient.grpc import service_pb2

from gateway.core import Gateway
from gateway.errors import GatewayError, ReplicaLost
from gateway.http.request_context import ClientGone, RequestContext
from gateway.lazy_timer import LazyTimer
from gateway.models.catalogue import Model
from gateway.render import error_reply

log = logging.getLogger("gateway")
HEARTBEAT_S = 15.0  # proxies close a connection that is silent for a minute
HOLD_S = 0.005  # nobody reads so fast, and a write costs a fifth of what a piece does
HEARTBEAT = b": still working\n\n"  # a comment: clients skip it
DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would buffer the events
]
TOTAL_S = 600.0  # no response takes longer, however steadily its pieces come
# JSON may contain these unescaped, but str.splitlines ends a line at them, as some clients do.
_LINE_ENDS = tuple((end.encode(), b"\\u%04x" % ord(end)) for end in "\x85\u2028\u2029")


def one_line(document: bytes) -> bytes:
    """The JSON with no character that ends a line; orjson itself escapes the other line ends."""
    for end, escaped in _LINE_ENDS:
        document = document.replace(end, escaped)
    return document


def event(document: bytes) -> bytes:
    """JSON as a server-sent event."""
    return b"data: " + one_line(document) + b"\n\n"


class EventStream:
    """A reply of ``events``; a failure before the first event is an ordinary error.

    After that, an error is the last event, in the shape of the path's API. A client that does not
    read for ``timeout_s`` seconds is disconnected.
    """

    def __init__(
        self,
        context: RequestContext,
        events: AsyncGenerator[bytes, None],
        timeout_s: float,
        rights: AbstractContextManager[None],
        failure: Callable[[bytes], bytes] = event,
    ) -> None:
        """``rights`` (``AccessControl.bounded``) raises a GatewayError in its block when the
        caller may no longer go on; ``failure`` makes the last event of an error's JSON."""
        self._context, self._events, self._timeout_s = context, events, timeout_s
        self._rights, self._failure = rights, failure

    async def send(self, send: Send) -> None:
        """Raises ClientGone when the client disconnects; work upstream has ended by then."""
        await self._context.while_connected(self._send(send))

    async def _send(self, send: Send) -> None:
        try:
            async with asyncio.timeout(None) as patience:
                await self._write(_Connection(send, self._timeout_s, patience))
        except TimeoutError:
            if patience.expired():
                raise ClientGone from None
            raise

    async def _write(self, connection: "_Connection") -> None:
        context = self._context
        has_started = False
        try:
            with self._rights:
                async with aclosing(self._events) as events:
                    first_event = await anext(events, b"")
                    await connection.open()
                    has_started = True
                    await connection.write(first_event)
                    async for next_event in events:
                        await connection.write(next_event)
        except GatewayError as error:
            if not has_started:
                raise
            context.fault = error
            log.warning("%s ended early: %s", context.request_id, error)
            reply = error_reply(error, context.path, context.request_id)
            await connection.write(self._failure(reply.body))
            await connection.close()
        else:
            await connection.close()
        finally:
            connection.stop()


class _Connection:
    """The connection to the client, with a heartbeat while nothing else is sent.

    Events that come within ``HOLD_S`` of the last write are written together.
    """

    def __init__(self, send: Send, timeout_s: float, patience: asyncio.Timeout) -> None:
        """A write that takes longer than ``timeout_s`` ends ``patience``."""
        self._send, self._timeout_s, self._patience = send, timeout_s, patience
        self._loop = asyncio.get_running_loop()
        self._silence = LazyTimer(self._loop, self._start_writing)
        self._slow = LazyTimer(self._loop, self._lose_patience)
        self._hold = LazyTimer(self._loop, self._start_writing)
        self._held: list[bytes] = []
        self._next_write = 0.0  # on the loop's clock
        self._background: asyncio.Task[None] | None = None  # a heartbeat, or what was held

    async def open(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS]})

    async def write(self, event: bytes) -> None:
        """Return when the connection can take more."""
        self._held.append(event)
        if self._loop.time() < self._next_write:
            self._hold.set(self._next_write)
        else:
            await self.flush()

    async def flush(self) -> None:
        self._hold.clear()
        if self._background:
            await self._background
            self._background = None
        if self._held:
            await self._write()

    async def close(self) -> None:
        await self.flush()
        await self._send({"type": "http.response.body", "body": b""})

    def stop(self) -> None:
        """Write nothing more in the background."""
        for timer in (self._silence, self._slow, self._hold):
            timer.close()
        if self._background and not self._background.done():
            self._background.cancel()

    async def _write(self) -> None:
        """What is held; a heartbeat if nothing is. A heartbeat begins a turn of the loop after
        its time, so an event may have come by now."""
        data, now = b"".join(self._held) or HEARTBEAT, self._loop.time()
        self._held.clear()
        self._next_write = now + HOLD_S
        self._silence.clear()
        self._slow.set(now + self._timeout_s)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._slow.clear()
        self._silence.set(self._loop.time() + HEARTBEAT_S)

    def _start_writing(self) -> None:
        self._background = self._loop.create_task(self._write())

    def _lose_patience(self) -> None:
        self._patience.reschedule(self._loop.time())


async def stream_responses(
    gateway: Gateway,
    context: RequestContext,
    model: Model,
    message: service_pb2.ModelInferRequest,
    cancel: str = "",
) -> AsyncGenerator[service_pb2.ModelInferResponse, None]:
    """The model's responses as they arrive; closing the generator (``aclosing``) ends the work in
    Triton. ``cancel`` names the model's input for the id of a request to give up.

    The gateway's deadline bounds the wait for a turn and the first response together, then each
    wait for the next response; ``TOTAL_S`` bounds the whole. If the replica is lost before its
    first response, the request is sent to another one. Raises GatewayErrors, DeadlineExceeded among
    them.
    """
    message.model_name = gateway.serving(context, model)
    idle_s = context.remaining_s()
    text = gateway.text_work(context, model, message, message.raw_input_contents)
    turn = await gateway.turn(context, model, message.model_name, text)
    began_at, upstream_s = time.perf_counter(), context.upstream_s
    may_move = True  # to another replica: once, and before the first response
    has_responded = False

    def count_time() -> None:
        """Several texts of one request are written at the same time: the slowest counts."""
        spent_s = upstream_s + context.since_sent_s(began_at)
        context.upstream_s = max(context.upstream_s, spent_s)

    try:
        permit = gateway.pool.permit(message.model_name, message.model_version, work=text)
        if context.admission:
            context.admission.started()
        while True:
            # The first response has one deadline, whichever replica it comes from.
            first_s = context.remaining_s()
            try:
                with permit as upstream:
                    context.sent_to(upstream.address)
                    work = upstream.stream(message, idle_s, TOTAL_S, cancel, first_s)
                    async with aclosing(work) as responses:
                        async for response in responses:
                            if not context.first_response_at:
                                context.first_response_at = time.perf_counter()
                                context.version = response.model_version
                                count_time()
                            if not has_responded:
                                has_responded, may_move = True, False
                                turn.has_responded()
                            response.model_name = model.name
                            yield response
                return
            except ReplicaLost as error:
                if not may_move:
                    raise
                may_move = False
                permit = gateway.pool.second_permit(
                    permit, error, message.model_version, may_repeat=model.may_repeat
                )
    finally:
        turn.leave()
        count_time()
