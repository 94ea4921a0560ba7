"""How much a stranger can make the gateway hold, and for how long: raw bytes to a real uvicorn."""

import asyncio
import contextlib
import socket
import time

import pytest

from gateway.http import bounded
from gateway.http.bounded import BoundedProtocol
from tests.gateway.served import served

GET = b"GET / HTTP/1.1\r\nHost: x\r\n"


CHUNKED = b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


async def _app(scope, receive, send):
    """Responds at once, whatever is still to come; but ``/size`` returns the size of the body,
    ``/headers`` the names of the headers, and ``/whole`` the body, with the connection's shortcuts.
    """
    body = b"ok"
    if scope["path"] == "/whole":
        connection, body = scope["connection"], None
        while body is None:  # one that is not here yet: its second half has its own packet
            await asyncio.sleep(0.01)
            body = connection.arrived()
        assert connection.arrived() is None, "it is received once"
        value = scope["query_string"].replace(b"+", b"\r\n")
        headers = [(b"content-length", b"%d" % len(body)), (b"x-value", value)]
        assert connection.respond(200, headers, body)
        assert not connection.respond(200, headers, body), "there is only one response"
        return
    if scope["path"] == "/size":
        size, message = 0, {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            size += len(message.get("body", b""))
        body = b"%d bytes" % size
    elif scope["path"] == "/headers":
        body = b" ".join(name for name, _ in scope["headers"])
    length = b"%d" % len(body)
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]}
    )
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port():
    with served(_app, http=BoundedProtocol) as port:
        yield port


@contextlib.contextmanager
def _connected(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(20)
        yield connection


def _all(connection) -> bytes:
    """Everything until the gateway closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


def _received(connection, end: bytes) -> bytes:
    """A response up to ``end`` of its body; its head may come alone at first."""
    received = b""
    while not received.endswith(end) and (part := connection.recv(1000)):
        received += part
    return received


def _answered(connection) -> bool:
    """Whether a whole response with the body ``ok`` comes."""
    received = _received(connection, b"ok")
    return received.startswith(b"HTTP/1.1 200 ") and received.endswith(b"ok")


def _flood(connection, part: bytes, most: int = 2000) -> int:
    """How many parts were accepted before the gateway closed the connection."""
    for count in range(most):
        try:
            connection.sendall(part)
        except OSError:
            return count
    return most


def test_a_connection_is_kept_as_long_as_it_is_used():
    with (
        served(_app, http=BoundedProtocol, timeout_keep_alive=2) as port,
        _connected(port) as connection,
    ):
        for _ in range(6):
            connection.sendall(GET + b"\r\n")
            assert _answered(connection)
            time.sleep(0.5)
        connection.settimeout(15)
        assert _all(connection) == b"", "it is closed without a word"


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_whole_response(port, version):
    head = f"POST /whole?a HTTP/{version}\r\nHost: x\r\nContent-Length: 4\r\n\r\n".encode()
    with _connected(port) as connection:
        for _ in range(2 if version == "1.1" else 1):
            connection.sendall(head + b"ab")
            connection.sendall(b"cd")
            head_and_body = _received(connection, b"abcd").split(b"\r\n\r\n")
            assert head_and_body[1] == b"abcd"
            lines = head_and_body[0].split(b"\r\n")
            assert lines[0] == b"HTTP/1.1 200 OK"
            assert b"x-value: a" in lines
            assert (b"connection: close" in lines) == (version == "1.0")


def test_a_line_end_in_a_header_of_a_whole_response_is_never_sent(port):
    with _connected(port) as connection:
        connection.sendall(b"POST /whole?a+set-cookie:b HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 500 ")


def test_an_ordinary_request_and_another_one_on_its_connection(port):
    with _connected(port) as connection:
        for _ in range(2):
            connection.sendall(GET + b"\r\n")
            assert _answered(connection)


@pytest.mark.parametrize(
    "head",
    [
        GET + b"X: " + b"a" * bounded.HEAD_LIMIT_BYTES + b"\r\n\r\n",
        GET + b"".join(b"X%d: a\r\n" % n for n in range(bounded.HEADERS_LIMIT)) + b"\r\n",
    ],
)
def test_a_head_that_is_too_large(port, head):
    with _connected(port) as connection:
        connection.sendall(head + GET + b"\r\n")  # what follows is not read as a request
        assert _all(connection).count(b"HTTP/1.1") == 1


def test_an_endless_head(port):
    for begin, part in ((GET, b"X: " + b"a" * 9000 + b"\r\n"), (GET + b"X: ", b"a" * 10_000)):
        with _connected(port) as connection:
            connection.sendall(begin)
            assert _flood(connection, part) < 1000


def test_the_client_gets_a_431(port):
    with _connected(port) as connection:
        connection.sendall(GET + b"X: " + b"a" * (bounded.HEAD_LIMIT_BYTES + 1))
        assert connection.recv(1000).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(("begin", "expected"), [(b"", b""), (GET, b""), (b"G", b"")])
def test_a_connection_that_sends_nothing_or_not_all(port, monkeypatch, begin, expected):
    monkeypatch.setattr(bounded, "HEAD_TIMEOUT_S", 0.3)
    with _connected(port) as connection:
        connection.sendall(begin)
        assert _all(connection) == expected


def test_a_second_head_that_does_not_end(port, monkeypatch):
    monkeypatch.setattr(bounded, "HEAD_TIMEOUT_S", 1.0)
    with _connected(port) as connection:
        connection.sendall(GET + b"\r\n")
        assert _answered(connection)
        connection.sendall(GET)
        assert _all(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_goes_on_after_its_answer(port, monkeypatch):
    monkeypatch.setattr(bounded, "DISCARD_LIMIT_BYTES", 1_000_000)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with _connected(port) as connection:
        connection.sendall(head)
        assert _answered(connection)
        assert _flood(connection, b"10000\r\n" + bytes(0x10000) + b"\r\n") < 300


def test_a_body_that_trickles_after_its_answer(port, monkeypatch):
    monkeypatch.setattr(bounded, "DISCARD_TIMEOUT_S", 0.3)
    with _connected(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert _answered(connection)
        with pytest.raises(OSError):
            for _ in range(500):
                connection.sendall(b"a")
                time.sleep(0.05)


def test_a_body_that_was_refused_may_be_sent_to_its_end(port):
    """Its sender reads the response, and may use the connection again."""
    with _connected(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert _answered(connection)
        connection.sendall(bytes(1_000_000))
        connection.sendall(GET + b"\r\n")
        assert _answered(connection)


def test_trailers_are_not_headers(port):
    """A proxy has not checked them: they must not say who is calling, or how much is coming."""
    with _connected(port) as connection:
        connection.sendall(
            b"POST /headers"
            + CHUNKED
            + b"1\r\na\r\n0\r\nAuthorization: b\r\nX-Request-Id: 1\r\n\r\n"
        )
        assert connection.recv(1000).endswith(b"\r\n\r\nhost transfer-encoding")
        connection.sendall(GET + b"\r\n")
        assert _answered(connection)


@pytest.mark.parametrize("path", [b"/", b"/size"])
@pytest.mark.parametrize(
    ("begin", "part"),
    [
        (b"1\r\na\r\n0\r\n", b"X: a\r\n" * 1000),
        (b"1\r\na\r\n0\r\nX: ", b"a" * 10_000),
        (b"1\r\na\r\n1;", b"a" * 10_000),
    ],
    ids=["many trailers", "an endless trailer", "an endless extension"],
)
def test_what_is_not_the_body_has_an_end(port, path, begin, part):
    with _connected(port) as connection:
        connection.sendall(b"POST " + path + CHUNKED + begin)
        if path == b"/":
            assert _answered(connection)
        assert _flood(connection, part) < 1000
        response = _all(connection)
    assert response == b"" if path == b"/" else response.startswith(b"HTTP/1.1 431 ")


def test_a_body_in_tiny_chunks_takes_turns(port, monkeypatch):
    """Each chunk costs some calls: all that arrive at once would hold everybody up."""
    taken = []
    call = bounded.ROUND_ROBIN.call
    monkeypatch.setattr(
        bounded.ROUND_ROBIN, "call", lambda *turn: (taken.append(turn), call(*turn))
    )
    size = 200_000
    with _connected(port) as connection:
        connection.sendall(
            b"POST /size" + CHUNKED + b"1\r\na\r\n" * size + b"0\r\n\r\n" + GET + b"\r\n"
        )
        response = b""
        while not response.endswith(b"ok"):
            response += connection.recv(1000)
    assert b"\r\n\r\n%d bytes" % size in response
    assert len(taken) > 6 * size / bounded.CHUNKED_BYTES / 2


def test_a_body_that_was_refused_takes_turns_too(port, monkeypatch):
    """A stranger gets responses before the body is read: many of them would hold up everybody."""
    taken = []
    call = bounded.ROUND_ROBIN.call
    monkeypatch.setattr(
        bounded.ROUND_ROBIN, "call", lambda *turn: (taken.append(turn), call(*turn))
    )
    size = 20_000_000
    with _connected(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        assert _answered(connection)
        connection.sendall(bytes(size) + GET + b"\r\n")
        assert _answered(connection)
    assert len(taken) > 10
