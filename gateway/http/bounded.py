"""uvicorn's HTTP protocol with bounds on what a client may make us hold, and for how long.

uvicorn has none on the size of a head (httptools took 100 MB of it), nor on the time that it takes,
nor on a body that goes on after its answer, nor on requests sent ahead, nor on answers that nobody
reads.
"""

import asyncio
import fcntl
import re
import termios
import urllib.parse
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from gateway.errors import (
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    NoCapacity,
    RequestTimeout,
    TooLarge,
)
from gateway.http.connections import OPEN
from gateway.http.render import error_reply
from gateway.http.request_context import ClientGone, new_request_id
from gateway.http.turns import BULK_BYTES, TURNS

HEAD_LIMIT_BYTES, HEADERS_LIMIT = 64 * 1024, 128
HEAD_TIMEOUT_S = 10.0  # for the request line and the headers, and until a new connection says it
# What still comes of a body that was refused is read, so that its sender can read the refusal.
DISCARD_LIMIT_BYTES, DISCARD_TIMEOUT_S = 64 * 1024 * 1024, 10.0
# What is sent ahead, while a request is being answered, waits as bytes: as requests it would take
# fifty times the memory. So much of it is read; and so much, at least, is parsed at a time.
AHEAD_LIMIT_BYTES, PARSED_BYTES = 64 * 1024, 1024
_HEAD_END = b"\r\n\r\n"
# Of a chunked body, so much is parsed at a time: each chunk costs calls of Python, however small it
# is. Where that was so many pieces, the rest waits for its turn.
CHUNKED_BYTES, MANY_PIECES = 16 * 1024, 256
# Chunk extensions and trailers: what a body may have between two of its bytes, and behind the last.
BETWEEN_LIMIT_BYTES = 64 * 1024
# RFC 3986's host (a name, an IPv4 address, or an IP literal in brackets) and port
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?\Z")
_UPGRADING = {b"upgrade", b"http2-settings"}
_ONLY_HTTP_1 = InvalidRequest(
    "send the request in version 1.1 of HTTP, or in 1.0: this port speaks no other"
)


@dataclass(frozen=True)
class ConnectionLimits:
    """What an application says of its connections, as its attribute ``connection_limits``."""

    answer_patience_s: float = 30.0  # a client that takes nothing for so long is cut


class BoundedProtocol(HttpToolsProtocol):
    """What is refused here is closed: nothing that came with it is read as another request."""

    _in_head = _in_message = _is_refused = _is_upgrading = was_used = False
    flow: "_AnswerFlow"
    _has_cycle = False  # the message that is being parsed
    _answering: RequestResponseCycle | None = None  # the one that began last; others may wait
    _timer: asyncio.TimerHandle | None = None
    _held = _discarded = 0
    _between = 0  # bytes since the last one of the body
    _has_body_now = False  # in what is being parsed
    _body_left = 0  # as far as the head says it
    _host: bytes | None = None  # the last one that was found good
    _last_words = b""  # a refusal that waits for the answers before it

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        limits = getattr(self.app, "connection_limits", ConnectionLimits())
        self.flow = _AnswerFlow(transport, self.loop, limits.answer_patience_s)
        self._ahead = bytearray()
        self._pieces: list[bytes] = []  # of the body, not yet in the cycle's
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._close)
        made = transport.get_extra_info("socket")
        if not OPEN.opened(self, made.fileno() if made else 0):
            error = NoCapacity("too many connections are open: try again shortly", retry_after_s=1)
            self._refuse(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        OPEN.closed(self)
        self._ahead.clear()
        super().connection_lost(exc)

    def is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def has_unread(self) -> bool:
        return _has_unread(self.transport)

    def _tenant(self) -> str:
        scope: Any = self.cycle.scope if self.cycle else {}
        return scope["context"].tenant if "context" in scope else ""

    def is_strangers(self) -> bool:
        scope: Any = self._answering.scope if self._answering else {}
        return "context" in scope and scope["context"].principal is None

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def evict(self) -> None:
        """Make place for another connection."""
        self._is_refused = True
        self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        if self._ahead or self._is_answering():
            self._keep(data)
        elif len(data) <= PARSED_BYTES:
            self._parse(data)
        else:
            self._feed(data)

    def _is_answering(self) -> bool:
        """Whether a whole request is under way, so that what comes now is the next one's."""
        return not self._in_message and self.cycle is not None and not self.cycle.response_complete

    def _keep(self, data: bytes | memoryview) -> None:
        self._ahead += data
        if len(self._ahead) > AHEAD_LIMIT_BYTES:
            self.flow.hold_reading()

    def _feed(self, data: bytes) -> None:
        """Parse up to the end of a head, as long as nothing is being answered. Of a chunked body,
        a slice; the others in the connection's turns if there are many chunks in it."""
        size, at, view = len(data), 0, memoryview(data)
        while at < size and not self._is_refused:
            if self._is_answering():
                self._keep(view[at:])
                break
            if self._in_message and self._body_left > 0:
                end = min(at + self._body_left, size)
            elif self._in_message and not self._in_head:
                end = min(at + CHUNKED_BYTES, size)
            else:
                end = data.find(_HEAD_END, at + PARSED_BYTES) if size - at > PARSED_BYTES else -1
                end = size if end < 0 else end + len(_HEAD_END)
            n_pieces = self._parse(view[at:end])
            at = end
            if n_pieces > MANY_PIECES and at < size:
                self._keep(view[at:])
                TURNS.call(self._go_on, self._tenant())
                break

    def _go_on(self) -> None:
        """With what was sent ahead."""
        if self._ahead and not self._is_refused and not self.transport.is_closing():
            data = bytes(self._ahead)
            self._ahead.clear()
            self._unset_keepalive_if_required()
            self.flow.let_read()
            self._feed(data)

    def _parse(self, data: bytes | memoryview) -> int:
        """How many pieces of a body were in it."""
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
            self._head_goes_on(len(data))
        elif self._in_message:
            self._between = 0 if self._has_body_now else self._between + len(data)
            self._has_body_now = False
            if self._between > BETWEEN_LIMIT_BYTES:
                self._refuse(TooLarge(_BETWEEN_TOO_LARGE), 431)
            elif self.cycle and self.cycle.response_complete:
                self._body_goes_on(len(data))
        return n_pieces

    def _ignore_upgrade(self, rest: memoryview) -> None:
        """The parser takes an upgrade for the end of HTTP. RFC 9110 lets a server ignore it: the
        same head is read again by another parser, without it, and then the body."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [each.strip() for each in value.split(b",")]
                value = b", ".join(each for each in tokens if each.lower() not in _UPGRADING)
            if name not in _UPGRADING:
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._is_upgrading = False
        self._parse(b"\r\n".join(lines) + _HEAD_END)
        if rest and not self._is_refused:
            if self._is_answering():
                self._keep(rest)
            else:
                self._parse(rest)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._has_cycle = False

    def on_headers_complete(self) -> None:
        self._in_head, self._held = False, 0
        self._rest()
        parser = self.parser
        version, method = parser.get_http_version(), parser.get_method()
        self._check_head(version)
        if parser.should_upgrade():
            if method == b"CONNECT":
                self._stop(MethodNotAllowed("CONNECT is not offered: this is not a proxy"), 405)
            self._is_upgrading = True
            return
        self.was_used = True
        self._begin(method.decode("ascii"), version)
        self._has_cycle = True
        # The parser calls trailers headers. They would be read as such if they are here already,
        # and be kept without a bound if they come later.
        self.headers, self._between = _DROPPED, 0

    def _begin(self, method: str, version: str) -> None:
        """The request's work, or its place behind those that came before it; as uvicorn does it,
        without what the gateway has no use for."""
        scope, url = self.scope, httptools.parse_url(self.url)
        scope["method"], scope["http_version"] = method, version
        path = url.path.decode("ascii")
        scope["path"] = urllib.parse.unquote(path) if "%" in path else path
        scope["raw_path"], scope["query_string"] = url.path, url.query or b""
        before = self.cycle
        self.cycle = RequestResponseCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version == "1.1" and self.parser.should_keep_alive() and not OPEN.is_scarce,
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        self._body_left -= len(body)
        self._has_body_now = True
        cycle = self.cycle
        if cycle.response_complete or self._is_upgrading:
            return
        if cycle.body:
            self._pieces.append(body)
            return
        cycle.body = body  # type: ignore[assignment]  # bytes do as well, and are not copied
        if len(body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def _join(self) -> int:
        """Add the pieces to the request's body, all at once: one by one each copies all before it.
        How many there were."""
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
        self._rest()
        if self._pieces:
            self._join()
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        was_last = not self.pipeline
        super().on_response_complete()
        if was_last:
            if self._last_words:
                self.transport.write(self._last_words)
                self._close()
            elif self._ahead:
                self.loop.call_soon(self._go_on)

    def send_400_response(self, msg: str) -> None:
        self._refuse(
            InvalidRequest(
                "this cannot be read as a request: send it as version 1.1 of HTTP has it"
            ),
            400,
        )

    def _check_head(self, version: str) -> None:
        size = hosts = self._body_left = 0
        host = b""
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts, host = hosts + 1, value
            elif name == b"content-length":
                self._body_left = int(value)  # the parser has read it
        if size > HEAD_LIMIT_BYTES or len(self.headers) > HEADERS_LIMIT:
            self._stop(TooLarge(_HEAD_TOO_LARGE), 431)
        if version not in ("1.1", "1.0"):
            self._stop(_ONLY_HTTP_1, 505)
        if hosts != 1:
            if hosts:
                self._stop(InvalidRequest("the header 'host' stands twice: send it once"))
            if version == "1.1":
                self._stop(InvalidRequest("the header 'host' is missing: send it"))
        elif host != self._host:
            if not _HOST.match(host):
                self._stop(
                    InvalidRequest("the header 'host' is not a host: send HOST or HOST:PORT")
                )
            self._host = host

    def _head_goes_on(self, count: int) -> None:
        self._held += count
        if self._held > HEAD_LIMIT_BYTES:
            self._refuse(TooLarge(_HEAD_TOO_LARGE), 431)
        elif self._timer is None:
            error = RequestTimeout("the head of the request did not arrive in time: send it faster")
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, error)

    def _body_goes_on(self, count: int) -> None:
        self._discarded += count
        if self._discarded > DISCARD_LIMIT_BYTES:
            self._close()
            return
        if self._timer is None:
            self._timer = self.loop.call_later(DISCARD_TIMEOUT_S, self._close)
        if count > BULK_BYTES:
            self.flow.hold_reading()
            TURNS.call(self._read_on, self._tenant())

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.let_read()

    def _refuse_unreadable(self, reason: str) -> None:
        """``reason`` is the parser's."""
        if "HTTP version" in reason or "PRI" in reason:
            self._refuse(_ONLY_HTTP_1, 505)
        else:
            self.send_400_response(reason)

    def _stop(self, error: GatewayError, status: int = 400) -> None:
        """Refuse in a callback of the parser, which stops; what it says then is not sent."""
        self._refuse(error, status)
        raise ValueError

    def _refuse(self, error: GatewayError, status: int = 0) -> None:
        """Answer and close, after the answers to earlier requests. The request that is being
        answered is refused too if it is the one that broke, as long as no answer has begun."""
        if self._is_refused:
            return
        self._is_refused = True
        refusal, cycle = self._refusal(error, status), self.cycle
        broken = self._in_message and self._has_cycle
        if broken and self.pipeline:
            self.pipeline.popleft()  # it has not begun, others have
            self._last_words = refusal
        elif cycle is not None and not cycle.response_complete and not broken:
            self._last_words = refusal
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
        self._rest()
        self.transport.close()

    def _rest(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


def _has_unread(transport: Any) -> bool:
    """Whether the kernel holds bytes of the connection that nobody has read yet."""
    made = transport.get_extra_info("socket")
    try:
        count = fcntl.ioctl(made.fileno(), termios.FIONREAD, bytes(4)) if made else b""
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


class _Dropped(list[tuple[bytes, bytes]]):
    """What is appended to it is not kept."""

    def append(self, _: tuple[bytes, bytes]) -> None: ...


_DROPPED = _Dropped()


class _AnswerFlow(FlowControl):
    """Flow control with patience: a client that takes nothing for long is cut."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop, patience_s: float) -> None:
        super().__init__(transport)
        self._loop, self._patience_s = loop, patience_s

    async def drain(self) -> None:
        """Until the connection takes more; ClientGone when it is lost, or cut for that."""
        timer = self._loop.call_later(self._patience_s, self._transport.abort)
        try:
            await super().drain()
        finally:
            timer.cancel()
        if self._transport.is_closing():
            raise ClientGone

    def hold_reading(self) -> None:
        """Whatever else wants to read, until ``let_read``."""
        self.pause_reading()
        self.__dict__["resume_reading"] = _not_now  # it is called twice a request: no check in it

    def let_read(self) -> None:
        self.__dict__.pop("resume_reading", None)
        self.resume_reading()


def _not_now() -> None: ...
