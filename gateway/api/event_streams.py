"""Answers that come in pieces: what generate and the text routes share.

``answers`` reads one gRPC stream a request, its permit held to the last piece; ``EventStream``
sends pieces as server-sent events, at the pace at which the client reads.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing

from starlette.types import Send
from tritonclient.grpc import service_pb2

from gateway.core import Gateway
from gateway.errors import GatewayError
from gateway.http.render import error_reply
from gateway.http.request_context import ClientGone, RequestContext
from gateway.models.catalogue import Model

log = logging.getLogger("gateway")
HEARTBEAT_S = 15.0  # proxies close a connection on which nothing comes for a minute
BEAT = b": still working\n\n"  # a comment: clients skip it
DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events
]


TOTAL_S = 600.0  # no answer takes longer, however steadily its pieces come


# What JSON may hold as it is, and str.splitlines takes for the end of a line, as some clients do.
_LINE_ENDS = tuple((end.encode(), b"\\u%04x" % ord(end)) for end in "\x85\u2028\u2029")


def one_line(document: bytes) -> bytes:
    """JSON that nobody can take for several lines; orjson escapes the other line ends itself."""
    for end, escaped in _LINE_ENDS:
        document = document.replace(end, escaped)
    return document


def event(document: bytes) -> bytes:
    """JSON as a server-sent event."""
    return b"data: " + one_line(document) + b"\n\n"


class EventStream:
    """A reply of ``events``; what fails before the first of them is an ordinary error.

    After it, an error is the last event, as the path's API shows it. A client that does not read
    for ``patience_s`` is given up.
    """

    def __init__(
        self,
        context: RequestContext,
        events: AsyncGenerator[bytes, None],
        patience_s: float,
        rights: AbstractContextManager[None],
    ) -> None:
        """``rights`` raises a GatewayError in its block when the caller may not go on:
        ``AccessControl.bounded``."""
        self._context, self._events, self._patience_s = context, events, patience_s
        self._rights = rights

    async def send(self, send: Send) -> None:
        """Raises ClientGone when the client leaves; the work upstream has ended then."""
        await self._context.while_connected(self._send(_Line(send, self._patience_s)))

    async def _send(self, line: "_Line") -> None:
        context, begun = self._context, False
        try:
            with self._rights:
                async with aclosing(self._events) as events:
                    first = await anext(events, b"")
                    await line.open()
                    begun = True
                    await line.write(first)
                    async for each in events:
                        await line.write(each)
        except GatewayError as error:
            if not begun:
                raise
            context.fault = error
            log.warning("%s ended early: %s", context.request_id, error)
            last = error_reply(error, context.path, context.request_id)
            await line.write(event(last.body))
        finally:
            line.rest()
        await line.close()


class _Line:
    """The way to the client, with a heartbeat while nothing else is sent."""

    def __init__(self, send: Send, patience_s: float) -> None:
        self._send, self._patience_s = send, patience_s
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.TimerHandle | None = None
        self._beat: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS]})

    async def write(self, data: bytes) -> None:
        """Returns when the connection can take more; ClientGone when that takes too long."""
        self.rest()
        try:
            async with asyncio.timeout(self._patience_s):
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            raise ClientGone from None
        self._next = self._loop.call_later(HEARTBEAT_S, self._start_beat)

    async def close(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    def rest(self) -> None:
        """No heartbeat until something was written again."""
        for each in (self._next, self._beat):
            if each:
                each.cancel()

    def _start_beat(self) -> None:
        async def heartbeat() -> None:
            await self._send({"type": "http.response.body", "body": BEAT, "more_body": True})
            self._next = self._loop.call_later(HEARTBEAT_S, self._start_beat)

        self._beat = self._loop.create_task(heartbeat())


async def answers(
    gateway: Gateway, context: RequestContext, model: Model, message: service_pb2.ModelInferRequest
) -> AsyncGenerator[service_pb2.ModelInferResponse, None]:
    """The model's answers as they come; leaving the generator (``aclosing``) ends it in Triton.

    The gateway's deadline bounds each wait for the next one, ``TOTAL_S`` the whole. Raises
    GatewayErrors, DeadlineExceeded among them.
    """
    message.model_name = gateway.serving(context, model)
    idle_s, asked = context.remaining_s(), time.perf_counter()
    with gateway.pool.permit(message.model_name, message.model_version) as upstream:
        if context.admission:
            context.admission.started()
        async with aclosing(upstream.stream(message, idle_s, TOTAL_S)) as found:
            async for answer in found:
                if not context.upstream_s:
                    context.upstream_s = time.perf_counter() - asked
                answer.model_name = model.name
                yield answer
