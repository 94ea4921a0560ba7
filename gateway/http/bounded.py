"""uvicorn's HTTP protocol with bounds on what a stranger may make us hold, and for how long.

uvicorn has none on the size of a head (httptools took 100 MB of it), nor on the time that it takes,
nor on a body that goes on after its answer.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT_BYTES, HEADERS_LIMIT = 64 * 1024, 128
HEAD_TIMEOUT_S = 10.0  # for the request line and the headers, and until a new connection says it
# What still comes of a body that was refused is read, so that its sender can read the refusal.
DISCARD_LIMIT_BYTES, DISCARD_TIMEOUT_S = 64 * 1024 * 1024, 10.0
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\n"
_END = b"content-length: 0\r\nconnection: close\r\n\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """What is refused here is closed: nothing that came with it is read as another request."""

    _in_head = _in_message = _is_refused = False
    _timer: asyncio.TimerHandle | None = None
    _held = _discarded = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        super().data_received(data)
        if self._in_head:
            self._head_goes_on(len(data))
        elif self._in_message and self.cycle and self.cycle.response_complete:
            self._body_goes_on(len(data))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._in_message = True

    def on_headers_complete(self) -> None:
        self._in_head, self._held = False, 0
        self._rest()
        size = sum(len(name) + len(value) for name, value in self.headers)
        if size > HEAD_LIMIT_BYTES or len(self.headers) > HEADERS_LIMIT:
            self._refuse(_TOO_LARGE)
            raise ValueError  # the parser stops, and what it says then is not sent
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_message, self._discarded = False, 0
        self._rest()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if not self._is_refused:
            super().send_400_response(msg)

    def _head_goes_on(self, count: int) -> None:
        self._held += count
        if self._held > HEAD_LIMIT_BYTES:
            self._refuse(_TOO_LARGE)
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, _TOO_SLOW)

    def _body_goes_on(self, count: int) -> None:
        self._discarded += count
        if self._discarded > DISCARD_LIMIT_BYTES:
            self._close()
        elif self._timer is None:
            self._timer = self.loop.call_later(DISCARD_TIMEOUT_S, self._close)

    def _refuse(self, status: bytes) -> None:
        self._is_refused = True
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(status + _END)
        self._close()

    def _close(self) -> None:
        self._rest()
        self.transport.close()

    def _rest(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
