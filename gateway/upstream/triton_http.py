"""HTTP/1.1 connections to one Triton: one request per connection at a time, with a deadline.

TimeoutError      the response did not arrive in time
ConnectionError   the connection ended, or was ended, before the response
ValueError        what came back is not a valid response
"""

import asyncio
import math
from functools import lru_cache
from typing import Any, NamedTuple

from gateway.http.round_robin import BULK_BYTES, ROUND_ROBIN
from gateway.lazy_timer import LazyTimer
from gateway.upstream.vanished import lose_what_vanishes

# To be connected: a port whose packets are dropped must not take a request's whole time, which can
# go over gRPC. After that the port is left alone for a while.
CONNECT_S, UNREACHABLE_S = 1.0, 5.0
LATE_S = 600.0  # how long a response that nobody waits for is watched for
_END = b"\r\n\r\n"


class Response(NamedTuple):
    """``json_length`` is the size of the JSON at the start of ``body``; None if all is JSON."""

    status: int
    json_length: int | None
    body: bytes


class TritonHttp:
    """A pool of connections: as many as there were requests in flight at once."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._watched: set[_Connection] = set()
        self._unreachable_until = -math.inf  # monotonic seconds of the loop

    @property
    def is_behind(self) -> bool:
        """Whether the server still works on a request that was watched for, and that nobody waits
        for any more."""
        return bool(self._watched)

    async def send(
        self, request: bytes, timeout_s: float, tenant: str, *, watches: bool = False
    ) -> Response | None:
        """The response, whatever its status; None if there is no connection. A large response is
        read in ``tenant``'s turns. If the caller is cancelled or the deadline passes, the
        connection is closed or, with ``watches``, kept until the response shows that the work is
        over."""
        connection = self._take_idle()
        if connection is None:
            began = asyncio.get_running_loop().time()
            connection = await self._connect(timeout_s)
            if connection is None:
                return None
            timeout_s -= asyncio.get_running_loop().time() - began
        try:
            response = await connection.send(request, timeout_s, tenant)
        except (asyncio.CancelledError, TimeoutError):
            connection.give_up(watches)
            raise
        finally:
            connection.ended()
        self._idle.append(connection)
        return response

    def _take_idle(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection in self._open:
                return connection
        return None

    async def _connect(self, timeout_s: float) -> "_Connection | None":
        loop = asyncio.get_running_loop()
        if loop.time() < self._unreachable_until:
            return None
        try:
            async with asyncio.timeout(min(timeout_s, CONNECT_S)):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._open, self._watched), self._host, self._port
                )
        except TimeoutError:
            self._unreachable_until = loop.time() + UNREACHABLE_S
            return None
        except OSError:
            return None
        return connection if connection in self._open else None  # it may be lost already

    def drop(self) -> None:
        """Close every connection; requests in flight fail with ConnectionError."""
        for connection in tuple(self._open):
            connection.end(ConnectionError("the server has gone"))


class _Connection(asyncio.Protocol):
    """Sends a request and reads its response. It cannot be used again if a response was not
    awaited to its last byte."""

    _transport: asyncio.Transport

    def __init__(self, usable: "set[_Connection]", watched: "set[_Connection]") -> None:
        """The pool's sets: of the connections that are open, and of those whose response nobody
        waits for."""
        self._usable, self._watched = usable, watched
        self._loop = asyncio.get_running_loop()
        self._timer = LazyTimer(self._loop, self._late)
        self._response: asyncio.Future[Response] | None = None
        self._head = b""  # the part that has arrived
        self._body: list[bytes] = []
        self._missing = -1  # bytes of the body; -1 until the head has been read
        self._status = 0
        self._tenant = ""
        self._json_length: int | None = None

    def send(self, request: bytes, timeout_s: float, tenant: str) -> "asyncio.Future[Response]":
        """The response to come; call ``ended`` once it is there or nobody waits for it any more."""
        self._tenant = tenant
        self._response = response = self._loop.create_future()
        self._timer.set(self._loop.time() + timeout_s)
        self._transport.write(request)
        return response

    def ended(self) -> None:
        if self not in self._watched:
            self._timer.clear()
        self._response = None

    def _late(self) -> None:
        if self._response is None:
            self.end(TimeoutError())
        elif not self._response.done():
            self._response.set_exception(TimeoutError())

    def give_up(self, watches: bool) -> None:
        """Nobody waits for the response any more."""
        is_answered = self._response is None or (
            not self._response.cancelled() and self._response.exception() is None
        )
        if watches and not is_answered and self in self._usable:
            self._watched.add(self)
            self._timer.set(self._loop.time() + LATE_S)
        else:
            self.end(ConnectionError("the request was given up"))

    def end(self, error: Exception) -> None:
        self._usable.discard(self)
        self._watched.discard(self)
        self._timer.close()
        self._transport.abort()
        if self._response and not self._response.done():
            self._response.set_exception(error)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        lose_what_vanishes(transport)
        self._usable.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.end(ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        if self._response is None or self._response.done():
            # No request, or nobody waits for it any more: if it was watched, it is over.
            self.end(ValueError("data that nobody waits for"))
            return
        if len(data) > BULK_BYTES:
            self._transport.pause_reading()
            ROUND_ROBIN.call(self._resume_reading, self._tenant)
        try:
            complete = self._read(data)
        except ValueError as error:
            self.end(error)
            return
        if complete:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._response.set_result(Response(self._status, self._json_length, body))
            self._head, self._body, self._missing = b"", [], -1

    def _resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _read(self, data: bytes) -> bool:
        """Whether the whole response has arrived. Raises ValueError if it is no valid response."""
        if self._missing < 0:
            if self._head:
                data = self._head + data
            end = data.find(_END)
            if end < 0:
                self._head = data
                return False
            end += len(_END)
            self._status, self._json_length, self._missing = _read_head(data[:end])
            data = data[end:]
        self._body.append(data)
        self._missing -= len(data)
        if self._missing < 0:
            raise ValueError("more data than the response should have")
        return not self._missing


@lru_cache(256)  # they differ in their lengths alone
def _read_head(head: bytes) -> tuple[int, int | None, int]:
    """The status, the size of the JSON, and the size of the body. Raises ValueError if it is not a
    valid head."""
    head = head.lower()
    length = _number(head, b"\r\ncontent-length:")
    if not head.startswith(b"http/1.1 ") or length is None:
        raise ValueError("not an HTTP response with a length")
    return int(head[9:12]), _number(head, b"\r\ninference-header-content-length:"), length


def _number(head: bytes, name: bytes) -> int | None:
    """A header's value; None if it is missing. Raises ValueError if it is not a number."""
    at = head.find(name)
    return None if at < 0 else int(head[at + len(name) : head.index(b"\r\n", at + len(name))])
