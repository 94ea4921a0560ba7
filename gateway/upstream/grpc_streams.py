"""ModelStreamInfer calls to one Triton, as gRPC over HTTP/2 by the ``h2`` library.

A message of a stream takes a sixth of the processor time that it takes with ``grpc.aio``, which
hands each one over from a thread of its own (docs/performance.md, "The streams of a language
model"). A unary call would gain nothing: there the headers are the most of it, which ``h2`` reads
in Python.

Errors are ``grpc.aio.AioRpcError``, as they are with ``grpc.aio``.
"""

import asyncio
import contextlib
import itertools
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import grpc
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from hyperframe.frame import Frame, GoAwayFrame

from gateway.lazy_timer import LazyTimer
from gateway.upstream.trace_context import Metadata
from gateway.upstream.triton_errors import NOT_CONNECTED
from gateway.upstream.vanished import lose_what_vanishes
from modelspec.address import joined

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
CONNECT_S = 2.0  # until the server has said something; machines are busy
NEXT_ADDRESS_S = 0.25  # then the name's next address is tried beside this one (RFC 8305)
# What is to be sent to a server that does not read, besides messages: acknowledgements of what it
# sends itself, and the beginnings and ends of streams.
MOST_UNREAD_BYTES = 2**20
# What Triton may send ahead on a stream that is not read.
STREAM_BYTES = 65_535
# All streams together: each is held back by its own window, none by another one's.
CONNECTION_BYTES = 2**30
CREDIT_BYTES = STREAM_BYTES // 4  # so much is read before Triton is told that it may send more
_PREFIX = 5  # bytes before each message: whether it is compressed, and its length
_UNAVAILABLE, _UNKNOWN = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN
_STATUSES = {str(status.value[0]).encode(): status for status in grpc.StatusCode}
# https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
_OF_HTTP = {b"429": _UNAVAILABLE, b"502": _UNAVAILABLE, b"503": _UNAVAILABLE, b"504": _UNAVAILABLE}
# https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#errors
_OF_RESET: dict[int, grpc.StatusCode] = {
    ErrorCodes.CANCEL: grpc.StatusCode.CANCELLED,
    ErrorCodes.ENHANCE_YOUR_CALM: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def _failed(status: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(status, nothing, nothing, details)


def _not_sent(reason: str) -> grpc.aio.AioRpcError:
    """The server has seen nothing of the stream: any other one may be asked."""
    return _failed(_UNAVAILABLE, f"{NOT_CONNECTED}: {reason}")


class GrpcStreams:
    """Opens streams to the server at ``host`` and ``port``, over as few connections as it allows;
    the first is made when a stream needs it."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._connections: set[_Connection] = set()  # those that are not lost
        self._attempt: asyncio.Task[_Connection] | None = None
        self._is_closed = False

    def open(
        self, metadata: Metadata | None = None, timeout_s: float | None = None
    ) -> "GrpcStream":
        """A stream that begins with its first ``write``; Triton cancels it after ``timeout_s``."""
        headers = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", METHOD.encode()),
            (b":authority", joined(self._host, self._port).encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        ]
        if timeout_s is not None:
            headers.append((b"grpc-timeout", b"%dS" % max(1, timeout_s)))
        headers += [(name.encode(), value.encode()) for name, value in metadata or ()]
        return GrpcStream(self._connected, headers)

    async def _connected(self) -> "_Connection":
        """A connection that takes another stream. Raises AioRpcError if there is none."""
        while not self._is_closed:
            for connection in self._connections:
                if connection.has_room():
                    return connection
            if self._attempt is None:
                self._attempt = asyncio.create_task(self._connect())
                self._attempt.add_done_callback(self._attempted)
            attempt = self._attempt  # for all who wait: it goes on when one of them leaves
            await asyncio.wait({attempt})
            if not attempt.cancelled() and not attempt.result().takes_streams():
                break
        raise _not_sent("the server takes no streams")

    async def _connect(self) -> "_Connection":
        try:
            async with asyncio.timeout(CONNECT_S):
                return await self._quickest(await self._addresses())
        except (OSError, UnicodeError) as error:  # TimeoutError among them
            raise _not_sent(str(error) or "no answer in time") from error

    async def _addresses(self) -> list[str]:
        """Those of the host, IPv6 and IPv4 in turns. OSError if it has none."""
        infos = await asyncio.get_running_loop().getaddrinfo(
            self._host, self._port, type=socket.SOCK_STREAM
        )
        by_family: dict[int, list[str]] = {}
        for family, _, _, _, address in infos:
            by_family.setdefault(family, []).append(str(address[0]))
        turns = itertools.zip_longest(*by_family.values())
        return [address for turn in turns for address in turn if address]

    async def _quickest(self, addresses: list[str]) -> "_Connection":
        """To the first address that answers: each gets a while before the next is tried too."""
        attempts: list[asyncio.Task[_Connection]] = []
        try:
            while True:
                is_last = len(attempts) == len(addresses) - 1
                attempts.append(asyncio.create_task(self._connect_to(addresses[len(attempts)])))
                attempt = await _first_to_succeed(attempts, None if is_last else NEXT_ADDRESS_S)
                if attempt or is_last:
                    return (attempt or attempts[-1]).result()
        finally:
            for attempt in attempts:
                attempt.cancel()

    async def _connect_to(self, address: str) -> "_Connection":
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self._connections), address, self._port
        )
        await connection.until_ready()
        return connection

    def _attempted(self, attempt: "asyncio.Task[_Connection]") -> None:
        self._attempt = None
        if not attempt.cancelled():
            attempt.exception()  # retrieved: who waited for it may have left

    def close(self) -> None:
        """Streams under way fail as UNAVAILABLE, and so do new ones."""
        self._is_closed = True
        if self._attempt:
            self._attempt.cancel()
        for connection in tuple(self._connections):
            connection.fail("the connection was closed")


async def _first_to_succeed(
    attempts: Sequence["asyncio.Task[_Connection]"], timeout_s: float | None
) -> "asyncio.Task[_Connection] | None":
    """The first attempt that has made a connection; None if all have failed, or none has after
    ``timeout_s``."""
    deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
    while True:
        for attempt in attempts:
            if attempt.done() and not attempt.exception():
                return attempt
        pending = [attempt for attempt in attempts if not attempt.done()]
        left_s = None if deadline is None else deadline - asyncio.get_running_loop().time()
        if not pending or (left_s is not None and left_s <= 0):
            return None
        await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)


class GrpcStream:
    """One ModelStreamInfer, of serialised messages in both directions, for one reader and one
    writer. A task that is cancelled while it waits here leaves the stream as it is."""

    def __init__(
        self,
        connected: "Callable[[], Awaitable[_Connection]]",
        headers: Sequence[tuple[bytes, bytes]],
    ) -> None:
        self._connected, self._headers = connected, headers
        self._connection: _Connection | None = None
        self.number = 0  # HTTP/2's, once it has begun
        self._loop = asyncio.get_running_loop()
        # What is to be sent. A large message is cut at what the server allows at a time.
        self.outgoing: deque[memoryview] = deque()
        self.ends_outgoing = self.has_ended_outgoing = False
        self._sent: asyncio.Future[None] | None = None
        # What has arrived: whole messages, and the beginning of the next one.
        self._messages: deque[bytes] = deque()
        self._partial = bytearray()
        self._credited = 0  # bytes of that beginning which the server may already send again
        self._credit = 0  # bytes that were read since it was last told
        self._reader: asyncio.Future[None] | None = None
        self._patience = LazyTimer(self._loop, self._lose_patience)
        self._is_over = False
        self._error: grpc.aio.AioRpcError | None = None

    def has_begun(self) -> bool:
        """Whether the server knows of it."""
        return self._connection is not None

    def is_over(self) -> bool:
        """Whether nothing more will arrive."""
        return self._is_over

    def is_readable(self) -> bool:
        """Whether ``read`` returns or raises at once."""
        return bool(self._messages) or self._is_over

    async def write(self, message: bytes) -> None:
        """Return when the message is on its way. Raises AioRpcError if the stream has ended, as it
        does if there is no connection."""
        connection = self._connection or await self._begun()
        if self._is_over:
            raise self._error or _failed(grpc.StatusCode.CANCELLED, "the stream has ended")
        self.outgoing.append(memoryview(b"\0" + len(message).to_bytes(4, "big") + message))
        await self._send(connection)

    async def _begun(self) -> "_Connection":
        """The connection on which the stream now is, unless it was ended meanwhile."""
        try:
            connection = await self._connected()
            if not self._is_over:
                connection.begin(self, self._headers)
                self._connection = connection
        except grpc.aio.AioRpcError as error:
            self.finish(error)
            raise
        except h2.exceptions.ProtocolError as error:
            failure = _not_sent(str(error))
            self.finish(failure)
            raise failure from error
        return connection

    async def done_writing(self) -> None:
        """No message follows."""
        if self._connection and not self.ends_outgoing and not self._is_over:
            self.ends_outgoing = True
            await self._send(self._connection)

    async def _send(self, connection: "_Connection") -> None:
        connection.send(self)
        while self.outgoing and not self._is_over:
            self._sent = self._loop.create_future()
            await self._sent

    def sent(self) -> None:
        """Everything outgoing is on its way, or never will be."""
        if self._sent and not self._sent.done():
            self._sent.set_result(None)

    async def read(self, until: float | None = None) -> bytes | None:
        """The next message; None after the last one. Raises AioRpcError, and TimeoutError if there
        is none by ``until`` (on the loop's clock)."""
        if not self.is_readable():
            await self.wait(until)
        if self._messages:
            message = self._messages.popleft()
            self._credit += _PREFIX + len(message)
            self._give_credit()
            return message
        if self._error:
            raise self._error
        return None

    async def wait(self, until: float | None = None) -> None:
        """Return when it is readable. Raises TimeoutError if it is not by ``until``."""
        while not self.is_readable():
            # Not asyncio.timeout: that was a tenth of what a piece costs.
            self._reader = self._loop.create_future()
            if until is not None:
                self._patience.set(until)
            try:
                await self._reader
            finally:
                self._reader = None
                self._patience.clear()

    def cancel(self) -> None:
        """Tell the server to stop, unless the stream is over."""
        if self._connection and not self._is_over:
            self._connection.reset(self)
        self.finish(_failed(grpc.StatusCode.CANCELLED, "it was cancelled by the gateway"))

    def _lose_patience(self) -> None:
        if self._reader and not self._reader.done():
            self._reader.set_exception(TimeoutError())

    def _wake(self) -> None:
        if self._reader and not self._reader.done():
            self._reader.set_result(None)

    def feed(self, data: bytes, size: int) -> None:
        """Called by the connection: ``size`` bytes came, padding among them. Raises ValueError for
        what gRPC does not allow."""
        self._credit += size - len(data)
        partial = self._partial
        partial += data
        begin, end = 0, len(partial)
        while end - begin >= _PREFIX:
            length = int.from_bytes(partial[begin + 1 : begin + _PREFIX], "big")
            if partial[begin]:
                raise ValueError("a compressed message, which was not asked for")
            if end - begin < _PREFIX + length:
                break
            self._messages.append(bytes(partial[begin + _PREFIX : begin + _PREFIX + length]))
            begin += _PREFIX + length
        if begin:
            del partial[:begin]
            self._credit -= self._credited  # those bytes count again when the message is read
            self._credited = 0
        if self._messages:
            self._wake()
        else:
            self._give_credit()

    def _give_credit(self) -> None:
        """Let the server send as much again as was read."""
        if not self._messages:  # the reader waits for the rest, which may be more than the window
            self._credit += len(self._partial) - self._credited
            self._credited = len(self._partial)
        if self._credit >= CREDIT_BYTES and self._connection and not self._is_over:
            self._connection.allow(self, self._credit)
            self._credit = 0

    def finish(self, error: grpc.aio.AioRpcError | None = None) -> None:
        """Called once nothing more will arrive; what has arrived can still be read."""
        if self._is_over:
            return
        if error is None and self._partial:
            error = _failed(grpc.StatusCode.INTERNAL, "the server ended the stream amid a message")
        self._is_over, self._error = True, error
        self.outgoing.clear()
        self._patience.close()
        self.sent()
        self._wake()


class _Client(h2.connection.H2Connection):
    """h2 ends a connection at a GOAWAY; gRPC's servers send one to say that they take no more
    streams, and finish those under way (python-hyper/h2 #1181)."""

    def __init__(self) -> None:
        super().__init__(H2Configuration(client_side=True, header_encoding=None))
        self.goaway: GoAwayFrame | None = None
        self._frame_dispatch_table[GoAwayFrame] = self._note_goaway

    def _note_goaway(self, frame: GoAwayFrame) -> tuple[list[Frame], list[h2.events.Event]]:
        self.goaway = frame
        return [], [h2.events.ConnectionTerminated()]

    def takes_streams(self) -> bool:
        """Whether the server takes another stream at all, now or once one has ended."""
        has_numbers = self.highest_outbound_stream_id < self.HIGHEST_ALLOWED_STREAM_ID - 2
        return (
            self.goaway is None and has_numbers and self.remote_settings.max_concurrent_streams > 0
        )


class _Connection(asyncio.Protocol):
    """One connection and its streams. It adds itself to ``connections`` when it can be used, and
    leaves them when it is lost.

    h2 handles everything that was read at once before we see the first event of it: a stream that
    an event is about may be closed already, by what the next events will say.
    """

    _transport: asyncio.Transport

    def __init__(self, connections: "set[_Connection]") -> None:
        self._connections = connections
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._h2 = _Client()
        self._streams: dict[int, GrpcStream] = {}
        self._blocked: set[GrpcStream] = set()  # have more to send than was allowed
        self._is_paused = self._is_lost = False
        self._unread = 0  # bytes that were written since the transport has had enough
        self._received = 0  # bytes of messages since the server was last allowed more

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        lose_what_vanishes(transport)
        self._h2.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: STREAM_BYTES,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 65_536,
            },
        )
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_BYTES)
        self._flush()

    async def until_ready(self) -> None:
        """Return once the server has sent its settings: a stopped one takes connections too.
        Raises AioRpcError if it is lost before; one that is not waited for is given up."""
        try:
            await self._ready
        except BaseException:
            self.fail("it was given up")
            raise

    def connection_lost(self, error: Exception | None) -> None:
        self.fail(f"the connection was lost: {error}" if error else "the server closed it")

    def eof_received(self) -> None:
        self.fail("the server closed it")

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._unread = 0
        self._unblock()

    def takes_streams(self) -> bool:
        """Whether it takes another stream, now or once one has ended."""
        return not self._is_lost and self._h2.takes_streams()

    def has_room(self) -> bool:
        """Whether it takes another stream now."""
        most = self._h2.remote_settings.max_concurrent_streams
        return self.takes_streams() and len(self._streams) < most

    def begin(self, stream: GrpcStream, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Raises ProtocolError if the server allows no other one."""
        stream.number = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream.number, headers)
        self._streams[stream.number] = stream

    def send(self, stream: GrpcStream) -> None:
        """What the stream has to send, as far as the server allows now."""
        try:
            is_sent = self._send(stream)
        except h2.exceptions.NoSuchStreamError:
            is_sent = False  # it is closed, and will learn why
        if is_sent:
            self._blocked.discard(stream)
            stream.sent()
        elif stream.number in self._streams:
            self._blocked.add(stream)
        self._flush()

    def _send(self, stream: GrpcStream) -> bool:
        number, outgoing = stream.number, stream.outgoing
        while outgoing:
            room = min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size)
            if room <= 0 or self._is_paused:
                return False
            part = outgoing[0][:room]
            if len(part) == len(outgoing[0]):
                outgoing.popleft()
            else:
                outgoing[0] = outgoing[0][room:]
            self._h2.send_data(number, part)
            if len(part) == room:
                self._flush()  # so that the transport can say when it has enough
        if stream.ends_outgoing and not stream.has_ended_outgoing:
            stream.has_ended_outgoing = True
            self._h2.end_stream(number)
        return True

    def allow(self, stream: GrpcStream, size: int) -> None:
        """The server may send so many bytes more on the stream."""
        with contextlib.suppress(h2.exceptions.NoSuchStreamError, KeyError):  # it is closed
            self._h2.increment_flow_control_window(size, stream.number)
        self._flush()

    def reset(self, stream: GrpcStream) -> None:
        self._forget(stream, ErrorCodes.CANCEL)
        self._flush()
        self._close_if_unused()

    def fail(self, reason: str) -> None:
        """End the connection; its streams fail as UNAVAILABLE."""
        if self._is_lost:
            return
        self._is_lost = True
        self._connections.discard(self)
        self._transport.abort()
        if self._h2.goaway and (text := self._h2.goaway.additional_data):
            reason += f" ({text.decode('utf-8', 'replace')})"
        if not self._ready.done():
            self._ready.set_exception(_not_sent(reason))
        streams, self._streams = self._streams, {}
        self._blocked.clear()
        for stream in streams.values():
            stream.finish(_failed(_UNAVAILABLE, reason))

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._h2.receive_data(data):
                self._handle(event)
        except h2.exceptions.ProtocolError as error:
            self.fail(f"what the server sent is not gRPC: {error}")
            return
        self._flush()
        self._close_if_unused()

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.DataReceived):
            self._read_data(event)
        elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            if stream := self._streams.get(event.stream_id):
                self._read_headers(stream, dict(event.headers), has_ended=bool(event.stream_ended))
        elif isinstance(event, h2.events.StreamEnded):
            if stream := self._streams.get(event.stream_id):
                self._forget(stream, None if stream.has_ended_outgoing else ErrorCodes.NO_ERROR)
                stream.finish(_failed(_UNKNOWN, "the stream ended without a status"))
        elif isinstance(event, h2.events.StreamReset):
            if stream := self._streams.get(event.stream_id):
                self._forget(stream)
                stream.finish(_of_reset(event.error_code))
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            if not self._ready.done():
                self._ready.set_result(None)
                self._connections.add(self)
            self._unblock()
        elif isinstance(event, h2.events.WindowUpdated):
            self._unblock()
        elif isinstance(event, h2.events.ConnectionTerminated) and self._h2.goaway:
            last = self._h2.goaway.last_stream_id
            for number, stream in tuple(self._streams.items()):
                if number > last:
                    self._forget(stream)
                    stream.finish(_not_sent("the server takes no more streams"))

    def _read_data(self, event: h2.events.DataReceived) -> None:
        self._received += event.flow_controlled_length
        if self._received > CONNECTION_BYTES // 2:
            self._h2.increment_flow_control_window(self._received)
            self._received = 0
        if stream := self._streams.get(event.stream_id):
            try:
                stream.feed(event.data, event.flow_controlled_length)
            except ValueError as error:
                self._forget(stream, ErrorCodes.CANCEL)
                stream.finish(_failed(grpc.StatusCode.INTERNAL, str(error)))

    def _read_headers(
        self, stream: GrpcStream, headers: dict[bytes, bytes], *, has_ended: bool
    ) -> None:
        """``has_ended``: the server sends nothing more."""
        http, code = headers.get(b":status", b"200"), headers.get(b"grpc-status")
        if http == b"200" and code is None:
            return
        error = None
        if http != b"200":
            error = _failed(_OF_HTTP.get(http, _UNKNOWN), f"HTTP status {http.decode('latin-1')}")
        elif code != b"0":
            details = unquote_to_bytes(headers.get(b"grpc-message", b""))
            status = _STATUSES.get(code or b"", _UNKNOWN)
            error = _failed(status, details.decode("utf-8", "replace"))
        is_closed = has_ended and stream.has_ended_outgoing
        self._forget(stream, None if is_closed else ErrorCodes.NO_ERROR)
        stream.finish(error)

    def _forget(self, stream: GrpcStream, code: ErrorCodes | None = None) -> None:
        """``code``: with which the stream is reset; None if the server knows of its end."""
        self._blocked.discard(stream)
        if self._streams.pop(stream.number, None) and code is not None:
            with contextlib.suppress(h2.exceptions.ProtocolError):  # the server has closed it
                self._h2.reset_stream(stream.number, code)

    def _close_if_unused(self) -> None:
        """A connection that takes no more streams ends with its last one."""
        if not self._streams and self._ready.done() and not self.takes_streams():
            self.fail("the server takes no more streams")

    def _unblock(self) -> None:
        for stream in tuple(self._blocked):
            self.send(stream)

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if not data or self._is_lost:
            return
        if self._is_paused:  # so these are no messages
            self._unread += len(data)
            if self._unread > MOST_UNREAD_BYTES:
                self.fail("the server does not read what it is sent")
                return
        self._transport.write(data)


def _of_reset(code: int | None) -> grpc.aio.AioRpcError:
    if code == ErrorCodes.REFUSED_STREAM:
        return _not_sent("the server refused the stream")
    return _failed(_OF_RESET.get(code or 0, grpc.StatusCode.INTERNAL), "the server gave it up")
