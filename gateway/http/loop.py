"""uvloop's event loop, with TLS handshakes that can be bounded.

A server of asyncio or uvloop does not show a connection before its handshake has ended, for which
it waits 60 s: a stranger who connects and sends nothing holds a descriptor that cannot be counted.
Here each connection is accepted as plain TCP, counted like any other, and then starts TLS.
"""

import asyncio
import contextlib
import ssl as tls
from collections.abc import Callable
from typing import Any

import uvloop

from gateway.http.connections import OPEN

HANDSHAKE_TIMEOUT_S = 10.0


class GatewayLoop(uvloop.Loop):
    """For ``uvicorn.run(loop=...)``."""

    async def create_server(  # type: ignore[override]  # passes all arguments on to uvloop
        self, factory: Any, *arguments: Any, ssl: tls.SSLContext | None = None, **options: Any
    ) -> object:
        if ssl:
            plain = factory
            factory = lambda: Handshake(self, plain, ssl)  # noqa: E731
        return await super().create_server(factory, *arguments, **options)


class Handshake(asyncio.Protocol):
    """A connection until TLS is established; then the protocol from ``factory`` takes over."""

    was_used = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: Callable[[], asyncio.Protocol],
        context: tls.SSLContext,
    ) -> None:
        self._loop, self._factory, self._context = loop, factory, context
        self._inner: asyncio.Protocol | None = None
        self._early = b""  # data that arrived before TLS, or the inner protocol, could take it
        self._is_lost = False
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        connection = transport.get_extra_info("socket")
        if OPEN.opened(self, connection.fileno() if connection else 0):
            self._task = self._loop.create_task(self._begin(transport))
            self._task.add_done_callback(lambda _: OPEN.closed(self))  # however it ended
        else:
            transport.abort()

    def is_busy(self) -> bool:
        return False

    def has_unread(self) -> bool:
        return False  # a handshake at most

    def serves_stranger(self) -> bool:
        return True

    def evict(self) -> None:
        self._task.cancel()
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._early += data

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        if self._inner:
            self._inner.connection_lost(exc)

    async def _begin(self, transport: Any) -> None:
        transport.pause_reading()  # until TLS reads
        secured = None
        try:
            with contextlib.suppress(OSError, tls.SSLError):  # not TLS, or too slow, or gone
                secured = await self._secured(transport)
        finally:
            if secured is None:
                transport.abort()
        if secured is None or self._is_lost:
            return
        inner = self._inner = self._factory()
        inner.connection_made(secured)
        secured.set_protocol(inner)
        if self._early:
            inner.data_received(self._early)

    async def _secured(self, transport: Any) -> Any:
        """The TLS transport, after the handshake."""
        handshake = self._loop.create_task(
            self._loop.start_tls(
                transport,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
            )
        )
        try:
            # The task's first step sets the TLS protocol.
            while transport.get_protocol() is self and not handshake.done():  # noqa: ASYNC110
                await asyncio.sleep(0)
            _hand_over(self._early, transport.get_protocol())
            self._early = b""
            return await handshake
        finally:
            handshake.cancel()


def _hand_over(data: bytes, protocol: Any) -> None:
    """Feed data that was read too early to the TLS protocol, as if the transport read it now."""
    while data and hasattr(protocol, "get_buffer"):
        buffer = memoryview(protocol.get_buffer(len(data)))
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]
