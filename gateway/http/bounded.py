"""uvicorn's HTTP protocol with bounds on what a client may make us hold, and for how long.

uvicorn bounds neither the size of a request's head (httptools accepted one of 100 MB) nor the time
it takes to arrive, nor a body that continues after its response, nor pipelined requests, nor
responses that the client does not read.
"""

import asyncio
import fcntl
import re
import termios
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from gateway.draining import DRAIN
from gateway.errors import (
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    NoCapacity,
    RequestTimeout,
    TooLarge,
)
from gateway.http.connections import OPEN
from gateway.http.request_context import ClientGone, new_request_id
from gateway.http.round_robin import BULK_BYTES, ROUND_ROBIN
from gateway.identity.keys import Holding
from gateway.lazy_timer import LazyTimer
from gateway.render import error_reply

LINGER_S = 10.0  # to send the last bytes of a connection that is being closed
HEAD_LIMIT_BYTES, HEADERS_LIMIT = 64 * 1024, 128
HEAD_TIMEOUT_S = 10.0  # for the request line and headers; also counts from the connection's start
# The rest of a refused body is read and discarded, so that its sender can read the refusal.
DISCARD_LIMIT_BYTES, DISCARD_TIMEOUT_S = 64 * 1024 * 1024, 10.0
# What arrives while a request is being served waits as bytes: as requests it would take fifty times
# the memory. At most AHEAD_LIMIT_BYTES of it are read, and at least PARSED_BYTES parsed at a time.
AHEAD_LIMIT_BYTES, PARSED_BYTES = 64 * 1024, 1024
_LINE_END, _HEAD_END = b"\r\n", b"\r\n\r\n"
_LENGTH_HEADER = re.compile(rb"\r\ncontent-length: *(?=[0-9])", re.IGNORECASE)
_LENGTH, _LENGTH_DIGITS = b"content-length", 12
KNOWN_BYTES = 4 * 1024  # a longer head is not kept
_OWN = frozenset({"connection", "headers", "state"})  # what a request's scope does not share
# A chunked body is parsed this many bytes at a time: each chunk costs calls of Python, however
# small it is. If there were more than MANY_PIECES chunks in them, the rest waits for its turn.
CHUNKED_BYTES, MANY_PIECES = 16 * 1024, 256
# Chunk extensions and trailers: what may stand between two bytes of a body, and after the last one.
BETWEEN_LIMIT_BYTES = 64 * 1024
# RFC 3986's host (a name, an IPv4 address, or an IP literal in brackets) and port
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?\Z")
_UPGRADING = {b"upgrade", b"http2-settings"}
_ONLY_HTTP_1 = InvalidRequest(
    "this port speaks only HTTP/1.0 and HTTP/1.1: send the request in one of them"
)


class ServedRequest(RequestResponseCycle):
    """uvicorn's request, with shortcuts for what is whole: see ``request_context.Connection``."""

    when_gone: Callable[[], object] | None = None
    known_head: "KnownHead | None" = None
    disconnected = response_started = response_complete = False
    more_body = True
    chunked_encoding: bool | None = None
    expected_content_length = 0

    def __init__(
        self,
        protocol: "BoundedProtocol",
        scope: Any,
        fields: dict[bytes, bytes],
        *,
        keep_alive: bool,
    ) -> None:
        """As uvicorn's, which takes what it needs of the connection one by one. ``fields``: the
        headers by name."""
        self.scope, self.fields = scope, fields
        self.transport, self.flow = protocol.transport, protocol.flow
        self.logger, self.access_logger = protocol.logger, protocol.access_logger
        self.access_log = protocol.access_log
        self.default_headers = protocol.server_state.default_headers
        self.message_event = asyncio.Event()
        self.on_response = protocol.on_response_complete
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = protocol.expect_100_continue
        self.body = bytearray()

    def arrived(self) -> bytes | None:
        if self.more_body or self.waiting_for_100_continue or self.response_complete:
            return None
        if self.disconnected or not self.message_event.is_set():
            return None
        self.message_event.clear()  # ``receive`` waits for the disconnect from now on
        body: bytes | bytearray = self.body
        self.body = bytearray()
        self.flow.resume_reading()
        return body if type(body) is bytes else bytes(body)

    def respond(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
        if self.flow.write_paused or self.disconnected or self.response_started:
            return False
        headers = [*self.default_headers, *headers]
        if not self.keep_alive:
            headers.append((b"connection", b"close"))
        lines = (b"%b: %b\r\n" * len(headers)) % tuple(chain.from_iterable(headers))
        if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
            raise RuntimeError("a header has a line end")
        self.response_started, self.waiting_for_100_continue = True, False
        if self.scope["method"] == "HEAD":
            body = b""
        self.transport.write(b"".join((STATUS_LINE[status], lines, b"\r\n", body)))
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
        return True

    def lost(self) -> None:
        """The connection is lost."""
        if not self.response_complete:
            self.disconnected = True
            if self.when_gone:
                self.when_gone()


@dataclass(slots=True)
class KnownHead:
    """The head of a connection's last request. Most clients send the same one again, but for the
    length of the body: what was parsed and checked then holds for it."""

    before: bytes  # up to the digits of the length
    after: bytes  # from behind them up to the body
    scope: Mapping[str, Any]  # but for the headers
    headers: list[tuple[bytes, bytes]]
    fields: Mapping[bytes, bytes]
    holding: Holding | None = None

    @staticmethod
    def of(data: bytes, request: ServedRequest) -> "KnownHead | None":
        """That of the request that was parsed from ``data``; None unless ``data`` is one whole
        request with a length, and another may follow it."""
        end = data.find(_HEAD_END, 0, KNOWN_BYTES)
        line = _LENGTH_HEADER.search(data, 0, end) if end > 0 else None
        if line is None or not request.keep_alive or request.waiting_for_100_continue:
            return None
        digits_end = data.index(_LINE_END, line.end())
        scope: Any = request.scope
        known = KnownHead(
            before=data[: line.end()],
            after=data[digits_end : end + len(_HEAD_END)],
            scope={name: value for name, value in scope.items() if name not in _OWN},
            headers=scope["headers"],
            fields=request.fields,
        )
        is_as_parsed = known.split(data) == (request.fields.get(_LENGTH), bytes(request.body))
        return known if is_as_parsed else None

    def split(self, data: bytes) -> tuple[bytes, bytes] | None:
        """The digits of the length and the body, if ``data`` is one whole request with this
        head."""
        if not data.startswith(self.before):
            return None
        begin = len(self.before)
        end = data.find(_LINE_END, begin, begin + _LENGTH_DIGITS)
        if end < 0 or not data.startswith(self.after, end):
            return None
        length, body = data[begin:end], data[end + len(self.after) :]
        return (length, body) if length.isdigit() and int(length) == len(body) else None


@dataclass(frozen=True)
class ConnectionLimits:
    """An application's limits for its connections: its attribute ``connection_limits``."""

    send_timeout_s: float = 30.0  # a client that reads nothing for so long is disconnected


class BoundedProtocol(HttpToolsProtocol):
    """After a refusal the connection is closed: nothing that came with the refused request is read
    as another request."""

    _in_head = _in_message = _is_refused = _is_upgrading = was_used = False
    flow: "_ResponseFlow"
    cycle: ServedRequest
    _has_cycle = False  # whether the message being parsed has its own cycle
    _current: ServedRequest | None = None  # the one started last; others may be waiting
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = _discarded = 0
    _between = 0  # bytes since the last byte of the body
    _has_body_now = False  # in the data being parsed
    _body_remaining = 0  # as far as content-length says
    _host: bytes | None = None  # the last valid one
    _final_response = b""  # a refusal that waits for the responses before it
    _known_head: KnownHead | None = None

    def connection_made(self, transport: Any) -> None:
        transport = self._client_transport = _ClientTransport(transport, self.loop)
        super().connection_made(transport)
        limits = getattr(self.app, "connection_limits", ConnectionLimits())
        self.flow = _ResponseFlow(transport, self.loop, limits.send_timeout_s)
        self._scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
        }
        self._idle_timer = LazyTimer(self.loop, self._close)
        self._ahead = bytearray()
        self._pieces: list[bytes] = []  # of the body, not yet appended to the cycle's
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._close)
        connection = transport.get_extra_info("socket")
        if not OPEN.opened(self, connection.fileno() if connection else 0):
            error = NoCapacity("too many connections are open: try again shortly", retry_after_s=1)
            self._refuse(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        self._idle_timer.close()
        self._client_transport.lost()
        OPEN.closed(self)
        self._ahead.clear()
        super().connection_lost(exc)
        if self._current:
            self._current.lost()

    def is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def has_unread(self) -> bool:
        return _has_unread(self.transport)

    def _tenant(self) -> str:
        scope: Any = self.cycle.scope if self.cycle else {}
        return scope["context"].tenant if "context" in scope else ""

    def serves_stranger(self) -> bool:
        scope: Any = self._current.scope if self._current else {}
        return "context" in scope and scope["context"].principal is None

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._current = cycle
        super()._start_asgi_task(cycle, app)

    def evict(self) -> None:
        """Make room for another connection."""
        self._is_refused = True
        self.transport.abort()

    def shutdown(self) -> None:
        """Close the connection, unless it is in a request or one has arrived."""
        if not _has_unread(self.transport):
            super().shutdown()

    def _unset_keepalive_if_required(self) -> None:
        self._idle_timer.clear()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        if self._ahead or self._is_request_complete():
            self._buffer(data)
        elif self._in_message:
            self._read(data)
        elif not self._begin_known(data):
            previous = self.cycle
            self._read(data)
            if self.cycle is not previous and self._is_request_complete() and not self._ahead:
                self._known_head = self.cycle.known_head = KnownHead.of(data, self.cycle)

    def _read(self, data: bytes) -> None:
        if len(data) <= PARSED_BYTES:
            self._parse(data)
        else:
            self._feed(data)

    def _begin_known(self, data: bytes) -> bool:
        """Start the request that ``data`` is without parsing it, if it has the known head."""
        known = self._known_head
        parts = known.split(data) if known else None
        if known is None or parts is None:
            return False
        length, body = parts
        fields = {**known.fields, _LENGTH: length}
        headers = known.headers
        if length != known.fields[_LENGTH]:
            headers = [
                (name, fields[name] if name == _LENGTH else value) for name, value in headers
            ]
        self.scope = {**known.scope, "headers": headers, "state": self.app_state.copy()}  # type: ignore[typeddict-item]
        self.was_used = True
        self._serve(fields, keep_alive=True)
        self._set_body(body)
        self.cycle.more_body, self.cycle.known_head = False, known
        return True

    def _is_request_complete(self) -> bool:
        """Whether the current request has arrived whole, so that new data belongs to the next."""
        return not self._in_message and self.cycle is not None and not self.cycle.response_complete

    def _buffer(self, data: bytes | memoryview) -> None:
        self._ahead += data
        if len(self._ahead) > AHEAD_LIMIT_BYTES:
            self.flow.hold_reading()

    def _feed(self, data: bytes) -> None:
        """Parse up to the end of a head, as long as no request is being served. A chunked body is
        parsed in slices; if a slice has many chunks, the rest waits for the connection's turn."""
        size, at, view = len(data), 0, memoryview(data)
        while at < size and not self._is_refused:
            if self._is_request_complete():
                self._buffer(view[at:])
                break
            if self._in_message and self._body_remaining > 0:
                end = min(at + self._body_remaining, size)
            elif self._in_message and not self._in_head:
                end = min(at + CHUNKED_BYTES, size)
            else:
                end = data.find(_HEAD_END, at + PARSED_BYTES) if size - at > PARSED_BYTES else -1
                end = size if end < 0 else end + len(_HEAD_END)
            n_pieces = self._parse(view[at:end])
            at = end
            if n_pieces > MANY_PIECES and at < size:
                self._buffer(view[at:])
                ROUND_ROBIN.call(self._resume_parsing, self._tenant())
                break

    def _resume_parsing(self) -> None:
        """Parse what arrived while the request before it was being served."""
        if self._ahead and not self._is_refused and not self.transport.is_closing():
            data = bytes(self._ahead)
            self._ahead.clear()
            self._unset_keepalive_if_required()
            self.flow.let_read()
            self._feed(data)

    def _parse(self, data: bytes | memoryview) -> int:
        """Feed the parser, and return how many pieces of a body were in the data."""
        n_pieces = 0
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._is_refused:
                self._ignore_upgrade(memoryview(data)[upgrade.args[0] :])
            return 0
        except httptools.HttpParserError as error:
            self._refuse_unreadable(str(error))
        if self._pieces:
            n_pieces = self._join()
        if self._in_head:
            self._check_head_progress(len(data))
        elif self._in_message:
            self._between = 0 if self._has_body_now else self._between + len(data)
            self._has_body_now = False
            if self._between > BETWEEN_LIMIT_BYTES:
                self._refuse(TooLarge(_BETWEEN_TOO_LARGE), 431)
            elif self.cycle and self.cycle.response_complete:
                self._discard_body(len(data))
        return n_pieces

    def _ignore_upgrade(self, rest: memoryview) -> None:
        """The parser takes an upgrade for the end of HTTP. RFC 9110 lets a server ignore it: a new
        parser reads the same head without the upgrade, and then the body."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() not in _UPGRADING)
            if name not in _UPGRADING:
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._is_upgrading = False
        self._parse(b"\r\n".join(lines) + _HEAD_END)
        if rest and not self._is_refused:
            if self._is_request_complete():
                self._buffer(rest)
            else:
                self._parse(rest)

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        headers: list[tuple[bytes, bytes]] = []
        self.headers = headers
        self.scope = {**self._scope, "headers": headers, "state": self.app_state.copy()}  # type: ignore[typeddict-item]
        self._in_head = self._in_message = True
        self._has_cycle, self._known_head = False, None

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._cancel_timer()
        parser = self.parser
        version, method = parser.get_http_version(), parser.get_method()
        fields = dict(self.headers)
        self._check_head(version, fields)
        if parser.should_upgrade():
            if method == b"CONNECT":
                self._abort_parsing(
                    MethodNotAllowed("CONNECT is not offered: this is not a proxy"), 405
                )
            self._is_upgrading = True
            return
        self.was_used = True
        self._begin(method.decode("ascii"), version, fields)
        self._has_cycle = True
        # The parser reports trailers as headers. Those that are here already would be read as
        # headers, and later ones would be kept without a bound.
        self.headers, self._between = _DROPPED, 0

    def _begin(self, method: str, version: str, fields: dict[bytes, bytes]) -> None:
        """Start the request, or queue it behind those before it; as uvicorn does, without what
        the gateway has no use for."""
        scope, url = self.scope, httptools.parse_url(self.url)
        scope["method"], scope["http_version"] = method, version
        path = url.path.decode("ascii")
        scope["path"] = urllib.parse.unquote(path) if "%" in path else path
        scope["raw_path"], scope["query_string"] = url.path, url.query or b""
        self._serve(fields, keep_alive=version == "1.1" and self.parser.should_keep_alive())

    def _serve(self, fields: dict[bytes, bytes], *, keep_alive: bool) -> None:
        """Start the request of ``self.scope``, or queue it."""
        previous, scope = self.cycle, self.scope
        if OPEN.is_scarce or DRAIN.has_begun:
            keep_alive = False
        self.cycle = served = ServedRequest(self, scope, fields, keep_alive=keep_alive)
        scope["connection"] = served  # type: ignore[typeddict-unknown-key]  # ASGI allows it
        if previous is None or previous.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        self._body_remaining -= len(body)
        self._has_body_now = True
        cycle = self.cycle
        if cycle.response_complete or self._is_upgrading:
            return
        if cycle.body:
            self._pieces.append(body)
            return
        self._set_body(body)

    def _set_body(self, body: bytes) -> None:
        """The body's first piece, or all of it."""
        cycle = self.cycle
        cycle.body = body  # type: ignore[assignment]  # bytes work too, and are not copied
        if len(body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def _join(self) -> int:
        """Append the pieces to the request's body and return how many there were. All at once: one
        by one, each would copy all those before it."""
        n_pieces, cycle = len(self._pieces), self.cycle
        cycle.body = bytearray().join((cycle.body, *self._pieces))
        self._pieces.clear()
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        return n_pieces

    def on_message_complete(self) -> None:
        if self._is_upgrading:
            return
        self._in_message, self._discarded = False, 0
        self._cancel_timer()
        if self._pieces:
            self._join()
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        """As uvicorn does, without a timer for each request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_timer.set(self.loop.time() + self.timeout_keep_alive)
        if self._final_response:
            self.transport.write(self._final_response)
            self._close()
        elif self._ahead:
            self.loop.call_soon(self._resume_parsing)

    def send_400_response(self, msg: str) -> None:
        self._refuse(
            InvalidRequest("this cannot be parsed as a request: send valid HTTP/1.1"),
            400,
        )

    def _check_head(self, version: str, fields: dict[bytes, bytes]) -> None:
        headers = self.headers
        self._body_remaining = int(fields.get(b"content-length", 0))  # the parser has validated it
        size = sum(map(len, chain.from_iterable(headers)))
        if size > HEAD_LIMIT_BYTES or len(headers) > HEADERS_LIMIT:
            self._abort_parsing(TooLarge(_HEAD_TOO_LARGE), 431)
        if version not in ("1.1", "1.0"):
            self._abort_parsing(_ONLY_HTTP_1, 505)
        if fields.get(b"expect", b"").lower() == b"100-continue":
            self.expect_100_continue = True
        host = fields.get(b"host")
        if host is None:
            if version == "1.1":
                self._abort_parsing(InvalidRequest("the header 'host' is missing: send it"))
        elif len(fields) < len(headers) and sum(name == b"host" for name, _ in headers) > 1:
            self._abort_parsing(InvalidRequest("the header 'host' is sent twice: send it once"))
        elif host != self._host:
            if not _HOST.match(host):
                self._abort_parsing(
                    InvalidRequest("the header 'host' is not a host: send HOST or HOST:PORT")
                )
            self._host = host

    def _check_head_progress(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > HEAD_LIMIT_BYTES:
            self._refuse(TooLarge(_HEAD_TOO_LARGE), 431)
        elif self._timer is None:
            error = RequestTimeout("the head of the request did not arrive in time: send it faster")
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, error)

    def _discard_body(self, count: int) -> None:
        self._discarded += count
        if self._discarded > DISCARD_LIMIT_BYTES:
            self._close()
            return
        if self._timer is None:
            self._timer = self.loop.call_later(DISCARD_TIMEOUT_S, self._close)
        if count > BULK_BYTES:
            self.flow.hold_reading()
            ROUND_ROBIN.call(self._resume_reading, self._tenant())

    def _resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.flow.let_read()

    def _refuse_unreadable(self, reason: str) -> None:
        """``reason`` is the parser's."""
        if "HTTP version" in reason or "PRI" in reason:
            self._refuse(_ONLY_HTTP_1, 505)
        else:
            self.send_400_response(reason)

    def _abort_parsing(self, error: GatewayError, status: int = 400) -> None:
        """Refuse from within a callback of the parser, which then stops; its own error is not
        sent."""
        self._refuse(error, status)
        raise ValueError

    def _refuse(self, error: GatewayError, status: int = 0) -> None:
        """Send the error and close, after the responses to earlier requests. If the faulty request
        is the one being served, it is refused too, unless its response has started."""
        if self._is_refused:
            return
        self._is_refused = True
        refusal, cycle = self._refusal(error, status), self.cycle
        broken = self._in_message and self._has_cycle
        if broken and self.pipeline:
            self.pipeline.popleft()  # it has not started, others have
            self._final_response = refusal
        elif cycle is not None and not cycle.response_complete and not broken:
            self._final_response = refusal
        else:
            if not (broken and cycle.response_started):
                self.transport.write(refusal)
            self._close()

    def _refusal(self, error: GatewayError, status: int) -> bytes:
        request_id = new_request_id()
        path = getattr(self, "url", b"").partition(b"?")[0].decode("latin-1")
        reply = error_reply(error, path, request_id, status)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", reply.content_type),
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-request-id", request_id.encode()),
            *reply.headers,
            (b"connection", b"close"),
        ]
        lines = [b"%b: %b\r\n" % header for header in headers]
        return b"".join([STATUS_LINE[reply.status], *lines, b"\r\n", reply.body])

    def _close(self) -> None:
        self._cancel_timer()
        self.transport.close()

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


def _has_unread(transport: Any) -> bool:
    """Whether the kernel holds bytes of the connection that have not been read yet."""
    connection = transport.get_extra_info("socket")
    try:
        count = fcntl.ioctl(connection.fileno(), termios.FIONREAD, bytes(4)) if connection else b""
    except (OSError, ValueError):  # it is closed
        return False
    return any(count)


_HEAD_TOO_LARGE = (
    f"the head of the request is over {HEAD_LIMIT_BYTES} bytes or {HEADERS_LIMIT} headers: "
    "send less in it"
)


_BETWEEN_TOO_LARGE = (
    f"chunk extensions or trailers are over {BETWEEN_LIMIT_BYTES} bytes: send the body without them"
)


class _ClientTransport:
    """A transport whose ``close`` ends although its client does not read the last bytes, and whose
    ``write`` does nothing once it is closing: uvloop raises for a write after the client left."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self.is_closing = transport.is_closing
        self._lingering: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if not self.is_closing():
            self._transport.close()
            self._lingering = self._loop.call_later(LINGER_S, self._transport.abort)

    def lost(self) -> None:
        if self._lingering:
            self._lingering.cancel()


class _Dropped(list[tuple[bytes, bytes]]):
    """A list that drops what is appended to it."""

    def append(self, _: tuple[bytes, bytes]) -> None: ...


_DROPPED = _Dropped()


class _ResponseFlow(FlowControl):
    """Flow control with a timeout: a client that reads nothing for too long is disconnected."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        super().__init__(transport)
        self._loop, self._timeout_s = loop, timeout_s

    async def drain(self) -> None:
        """Wait until the connection takes more. Raises ClientGone if it is lost, or was cut for
        taking nothing."""
        timer = self._loop.call_later(self._timeout_s, self._transport.abort)
        try:
            await super().drain()
        finally:
            timer.cancel()
        if self._transport.is_closing():
            raise ClientGone

    def hold_reading(self) -> None:
        """Stop reading until ``let_read``, whatever else wants to resume it."""
        self.pause_reading()
        # Called twice per request, so the method itself has no check.
        self.__dict__["resume_reading"] = _do_nothing

    def let_read(self) -> None:
        self.__dict__.pop("resume_reading", None)
        self.resume_reading()


def _do_nothing() -> None: ...
