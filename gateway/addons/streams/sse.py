"""An answer as server-sent events, sent at the pace at which its client reads."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.types import Send

from gateway.errors import GatewayError
from gateway.http.exchange import ClientGone, Exchange

log = logging.getLogger("gateway")
HEARTBEAT_S = 15.0  # proxies close a connection on which nothing comes for a minute
BEAT = b": still working\n\n"  # a comment: clients skip it
DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events
]


def event(document: bytes) -> bytes:
    return b"data: " + document + b"\n\n"


class EventStream:
    """A reply of ``events``; what fails before the first of them is an ordinary error.

    After it, ``failed`` renders the error as the last event. A client that does not read for
    ``patience_s`` is given up.
    """

    def __init__(
        self,
        exchange: Exchange,
        events: AsyncGenerator[bytes, None],
        failed: Callable[[GatewayError], bytes],
        patience_s: float,
    ) -> None:
        self._exchange, self._events, self._failed = exchange, events, failed
        self._patience_s = patience_s

    async def send(self, send: Send) -> None:
        """Raises ClientGone when the client leaves; the work upstream has ended then."""
        await self._exchange.while_connected(self._send(_Line(send, self._patience_s)))

    async def _send(self, line: "_Line") -> None:
        async with aclosing(self._events) as events:
            first = await anext(events, b"")
            await line.open()
            try:
                await line.write(first)
                async for each in events:
                    await line.write(each)
            except GatewayError as error:
                self._exchange.fault = error
                log.warning("%s ended early: %s", self._exchange.request_id, error)
                await line.write(self._failed(error))
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
        async def beat() -> None:
            await self._send({"type": "http.response.body", "body": BEAT, "more_body": True})
            self._next = self._loop.call_later(HEARTBEAT_S, self._start_beat)

        self._beat = self._loop.create_task(beat())
