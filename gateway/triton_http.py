"""Triton's HTTP/1.1 door, for inferences too short for anybody to leave.

It costs a fraction of what ``grpc.aio`` does (docs/performance.md), and Triton does not notice a
client that left there: ``gateway.upstream`` decides which inferences come here. One request a
connection at a time; what it says is in ``gateway.triton_wire``.
"""

import asyncio
from typing import Any

from tritonclient.grpc import service_pb2

from gateway.errors import DeadlineExceeded
from gateway.triton_wire import LENGTH, Answer, decode, encode, parse_head

_END = b"\r\n\r\n"


class TritonHttp:
    """Keeps the idle connections; there are as many as requests were under way at once."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._idle: list[_Connection] = []

    async def infer(
        self, request: service_pb2.ModelInferRequest, timeout_s: float
    ) -> service_pb2.ModelInferResponse:
        """The answer; TritonRefused, DeadlineExceeded, or ConnectionError when nobody answers."""
        connection = await self._connection()
        answer = await connection.ask(encode(request, self.host), timeout_s)
        if connection.is_usable:
            self._idle.append(connection)
        return decode(answer)

    async def _connection(self) -> "_Connection":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self.host, self.port)
        return connection

    def close(self) -> None:
        for connection in self._idle:
            connection.drop()
        self._idle.clear()


class _Connection(asyncio.Protocol):
    """Asks and reads one answer; unusable once an answer was not waited for to its end."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self.is_usable = True
        self._asked: asyncio.Future[Answer] | None = None
        self._received = bytearray()
        self._body_at = 0  # where the body begins; 0 until the head has been read
        self._status, self._headers = 0, dict[bytes, bytes]()

    async def ask(self, data: bytes, timeout_s: float) -> Answer:
        loop = asyncio.get_running_loop()
        self._asked = loop.create_future()
        timer = loop.call_later(timeout_s, self._fail, DeadlineExceeded(_TOO_LATE))
        self._transport.write(data)
        try:
            return await self._asked
        except BaseException:
            self.drop()
            raise
        finally:
            timer.cancel()
            self._asked = None

    def drop(self) -> None:
        self.is_usable = False
        self._transport.abort()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.is_usable = False
        self._fail(ConnectionResetError("Triton closed the connection"))

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        if not self._body_at and not self._read_head():
            return
        end = self._body_at + int(self._headers[LENGTH])
        if len(received) < end:
            return
        body = bytes(received[self._body_at : end])
        received.clear()
        self._body_at = 0
        if self._asked and not self._asked.done():
            self._asked.set_result(Answer(self._status, self._headers, body))

    def _read_head(self) -> bool:
        end = self._received.find(_END)
        if end < 0:
            return False
        self._status, self._headers = parse_head(bytes(self._received[:end]))
        if not self._headers.get(LENGTH, b"").isdigit():
            self._fail(ConnectionError("Triton's answer has no length"))
            return False
        self._body_at = end + len(_END)
        return True

    def _fail(self, error: Exception) -> None:
        if self._asked and not self._asked.done():
            self._asked.set_exception(error)


_TOO_LATE = "the model did not answer in time: try again or send less"
