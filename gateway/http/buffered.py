"""uvicorn's HTTP protocol, with the head of a response sent together with its first bytes.

uvicorn writes them separately: two system calls, two packets, and a client that wakes up twice.
"""

import asyncio
from typing import Any

from gateway.http.bounded import BoundedProtocol

JOINED_BYTES = 16 * 1024  # anything larger costs more to copy than to write separately
LINGER_S = 10.0  # to send the last bytes of a connection that is being closed


class BufferedProtocol(BoundedProtocol):
    """For ``uvicorn.run(http=...)``."""

    def connection_made(self, transport: Any) -> None:
        self._buffered = _BufferedTransport(transport, self.loop)
        super().connection_made(self._buffered)

    def connection_lost(self, exc: Exception | None) -> None:
        self._buffered.lost()
        super().connection_lost(exc)


class _BufferedTransport:
    """A transport that holds back one write until the next one, or until the loop's next iteration.

    Writes after the connection is lost are dropped: the client has left.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._pending = b""
        self._lingering: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._pending:
            pending, self._pending = self._pending, b""
            if not self._transport.is_closing():
                if len(data) > JOINED_BYTES:
                    self._transport.writelines((pending, data))
                else:
                    self._transport.write(pending + data)
        else:
            self._pending = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Send what is buffered and close; abort the connection if its client does not read it."""
        self._flush()
        if not self._transport.is_closing():
            self._transport.close()
            self._lingering = self._loop.call_later(LINGER_S, self._transport.abort)

    def lost(self) -> None:
        if self._lingering:
            self._lingering.cancel()

    def _flush(self) -> None:
        if self._pending:
            data, self._pending = self._pending, b""
            if not self._transport.is_closing():
                self._transport.write(data)
