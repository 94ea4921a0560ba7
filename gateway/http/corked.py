"""uvicorn's HTTP protocol with the head of an answer sent together with its first bytes.

uvicorn writes them one by one: two system calls, two packets, and a client that wakes up twice.
"""

import asyncio
from typing import Any

from gateway.http.bounded import BoundedProtocol


class CorkedProtocol(BoundedProtocol):
    """What ``uvicorn.run(http=...)`` takes."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Corked(transport, self.loop))


class _Corked:
    """A transport that holds back one write: until the next, or until the loop comes round."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
            self._transport.write(data)
        else:
            self._held = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            self._transport.write(data)
