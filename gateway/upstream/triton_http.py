"""HTTP/1.1 connections to one Triton: one request a connection at a time, each with a deadline.

TimeoutError      the answer was not there in time
ConnectionError   the connection ended, or was ended, before the answer
ValueError        what came back is not an answer
"""

import asyncio
from typing import Any, NamedTuple

from gateway.http.turns import BULK_BYTES, TURNS

_END = b"\r\n\r\n"


class Answer(NamedTuple):
    """``json_length`` is where the JSON part of ``body`` ends, None when it is all JSON."""

    status: int
    json_length: int | None
    body: bytes


class TritonHttp:
    """Keeps the connections; there are as many as requests were under way at once."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    async def ask(self, request: bytes, timeout_s: float, tenant: str) -> Answer | None:
        """The answer, whatever its status; None when nobody listens there. A large one is read in
        ``tenant``'s turns."""
        connection = self._take() or await self._connect(timeout_s)
        if connection is None:
            return None
        answer = await connection.ask(request, timeout_s, tenant)
        self._idle.append(connection)
        return answer

    def _take(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection in self._open:
                return connection
        return None

    async def _connect(self, timeout_s: float) -> "_Connection | None":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._open), self._host, self._port
                )
        except TimeoutError:
            raise
        except OSError:
            return None
        return connection if connection in self._open else None  # it may be lost already

    def drop(self) -> None:
        """End every connection, and with ConnectionError what is under way on it."""
        for connection in tuple(self._open):
            connection.end(ConnectionError("the server has gone"))


class _Connection(asyncio.Protocol):
    """Asks and reads one answer; ends when an answer was not waited for to its last byte."""

    _transport: asyncio.Transport

    def __init__(self, open_ones: "set[_Connection]") -> None:
        self._open_ones = open_ones  # this one is among them while it is of use
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[Answer] | None = None
        self._head = b""  # as far as it is here, until all of it is
        self._body: list[bytes] = []
        self._missing = -1  # bytes of the body; -1 until the head has been read
        self._status = 0
        self._tenant = ""
        self._json_length: int | None = None

    async def ask(self, request: bytes, timeout_s: float, tenant: str) -> Answer:
        self._tenant = tenant
        self._answer = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, self.end, TimeoutError())
        self._transport.write(request)
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.end(ConnectionError("nobody waits for the answer"))
            raise
        finally:
            timer.cancel()
            self._answer = None

    def end(self, error: Exception) -> None:
        self._open_ones.discard(self)
        self._transport.abort()
        if self._answer and not self._answer.done():
            self._answer.set_exception(error)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._open_ones.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.end(ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        if len(data) > BULK_BYTES:
            self._transport.pause_reading()
            TURNS.call(self._resume_reading, self._tenant)
        try:
            complete = self._read(data)
        except ValueError as error:
            self.end(error)
            return
        if complete and self._answer and not self._answer.done():
            body = b"".join(self._body)
            self._answer.set_result(Answer(self._status, self._json_length, body))
            self._head, self._body, self._missing = b"", [], -1

    def _resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _read(self, data: bytes) -> bool:
        """Whether the whole answer is here; ValueError when it is none, or nobody asked."""
        if self._missing < 0:
            self._head += data
            end = self._head.find(_END)
            if end < 0:
                return False
            data = self._head[end + len(_END) :]
            self._read_head(self._head[: end + 2].lower())
        self._body.append(data)
        self._missing -= len(data)
        if self._answer is None or self._missing < 0:
            raise ValueError("more than was asked for")
        return not self._missing

    def _read_head(self, head: bytes) -> None:
        length = _number(head, b"\r\ncontent-length:")
        if not head.startswith(b"http/1.1 ") or length is None:
            raise ValueError("not an HTTP answer with a length")
        self._status = int(head[9:12])
        self._json_length = _number(head, b"\r\ninference-header-content-length:")
        self._missing = length


def _number(head: bytes, name: bytes) -> int | None:
    """A header's value; None without it, ValueError when it is no number."""
    at = head.find(name)
    return None if at < 0 else int(head[at + len(name) : head.index(b"\r\n", at + len(name))])
