"""Upgrades are ignored, as RFC 9110 allows: the request is served as HTTP/1.1, including its body.
uvicorn lost the body of every POST of a JDK HttpClient, and what came after it (Kludex/
uvicorn#2722)."""

import contextlib
import re
import socket
import subprocess
import threading
import time

import orjson
import pytest

from gateway.http.bounded import BoundedProtocol
from tests.gateway.served import served

H2C = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
)
UPGRADES = {
    "curl and the JDK": H2C,
    "other order": b"Upgrade: h2c\r\nHTTP2-Settings: A\r\nConnection: HTTP2-Settings,Upgrade\r\n",
    "two lines": b"Upgrade: h2c\r\nConnection: Upgrade\r\nConnection: HTTP2-Settings\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n",
    "anything": b"connection: keep-alive, upgrade\r\nupgrade: TLS/1.0, foo/2\r\n",
}
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def _app(scope, receive, send):
    """Responds with what it received."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    names = sorted({name.decode() for name, _ in scope["headers"]})
    seen = {"method": scope["method"], "path": scope["path"], "size": len(body), "headers": names}
    document = orjson.dumps({**seen, "body": body[:100].decode()})
    headers = [(b"content-length", b"%d" % len(document))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": document})


@pytest.fixture(scope="module")
def port():
    with served(_app, http=BoundedProtocol) as port:
        yield port


def _send_raw(port, *parts: bytes) -> list[tuple[int, dict]]:
    """The responses to data sent part by part, until the gateway closes: after ``LAST`` at the
    latest, whose own response is left out."""
    received = b""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(30)
        for part in parts:
            connection.sendall(part)
            if len(parts) > 1:
                time.sleep(0.01)
        # One that has refused has closed.
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(LAST)
            while part := connection.recv(65536):
                received += part
    answers = []
    for response in re.split(rb"HTTP/1\.1 (?=\d{3} )", received)[1:]:
        body = response.partition(b"\r\n\r\n")[2]
        answers.append((int(response[:3]), orjson.loads(body) if body else {}))
    return [(status, seen) for status, seen in answers if seen.get("path") != "/last"]


def _length(body: bytes, upgrade: bytes, path: bytes = b"/a") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nX-Mine: 1\r\n%bContent-Length: %d\r\n\r\n"
    return head % (path, upgrade, len(body)) + body


def _chunked(body: bytes, upgrade: bytes) -> bytes:
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nX-Mine: 1\r\n%bTransfer-Encoding: chunked\r\n\r\n"
    return head % upgrade + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)
@pytest.mark.parametrize("frame", [_length, _chunked])
def test_the_body_arrives_and_so_do_the_requests_after_it(port, frame, upgrade):
    data = frame(b'{"a": 1}', upgrade) + frame(b"second", b"") + frame(b"third", upgrade)
    for answers in (
        _send_raw(port, data),
        _send_raw(port, *[data[at : at + 37] for at in range(0, len(data), 37)]),
    ):
        assert [status for status, _ in answers] == [200] * 3
        assert [seen["body"] for _, seen in answers] == ['{"a": 1}', "second", "third"]
        assert "x-mine" in answers[0][1]["headers"]
        assert "upgrade" not in answers[0][1]["headers"]


def test_a_large_body_and_one_without_a_body(port):
    answers = _send_raw(port, _length(b"a" * 3_000_000, H2C))
    assert [(status, seen["size"]) for status, seen in answers] == [(200, 3_000_000)]
    get = b"GET /b?c=d HTTP/1.1\r\nHost: x\r\n" + H2C + b"\r\n"
    assert [seen["path"] for _, seen in _send_raw(port, get * 50)] == ["/b"] * 50


def test_expect_with_an_upgrade(port):
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n" + H2C
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(5)
        connection.sendall(head + b"Content-Length: 4\r\n\r\n")
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abcd")
        assert b'"body":"abcd"' in connection.recv(2000)


def test_an_upgrade_hides_no_bad_framing(port):
    twice = b"POST /a HTTP/1.1\r\nHost: x\r\n" + H2C + b"Content-Length: 3\r\n"
    bad = twice + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"
    assert [status for status, _ in _send_raw(port, bad)] == [400]


def test_a_tunnel_is_refused(port):
    answers = _send_raw(port, b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n\x16\x03\x01")
    assert [status for status, _ in answers] == [405]
    assert answers[0][1]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "line",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\4\0\0\0\0\0",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/0.9\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: x\r\n\r\n",
        b"GET / HTTP/3.0\r\nHost: x\r\n\r\n",
    ],
)
def test_another_version_is_refused(port, line):
    (status, document), *more = _send_raw(port, line)
    assert (status, more) == (505, [])
    assert "HTTP/1.1" in document["detail"] and len(document["request_id"]) == 16


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"Host:\r\n",
        b"Host: a b\r\n",
        b"Host: a/b\r\n",
        b"Host: a, b\r\n",
        b"Host: u@a\r\n",
        b"Host: a:b\r\n",
        b"Host: [::1\r\n",
        b"Host: a\\b\r\n",
        b"Host: \xff\r\n",
        b"Host: a\r\nHost: a\r\n",
        b"Host: a\r\nX: y\r\nHost: b\r\n",
    ],
)
def test_a_host_that_is_missing_or_odd(port, host):
    answers = _send_raw(port, b"GET / HTTP/1.1\r\n" + host + b"\r\n")
    assert [status for status, _ in answers] == [400]
    assert "'host'" in answers[0][1]["detail"] and answers[0][1]["code"] == "invalid_request"


@pytest.mark.parametrize("host", [b"a", b"a.b-c:80", b"[::1]:8080", b"127.0.0.1:", b"a_b"])
def test_a_host_that_is_good(port, host):
    answers = _send_raw(port, b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert [status for status, _ in answers] == [200]
    assert _send_raw(port, b"GET / HTTP/1.0\r\n\r\n")[0][0] == 200  # HTTP/1.0 has none


@pytest.mark.parametrize(
    ("path", "field"), [(b"/v2/models/m/infer", "error"), (b"/v1/chat/completions", "error")]
)
def test_what_the_protocol_refuses_has_the_shape_of_its_api(port, path, field):
    head = b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: nonsense\r\n\r\n"
    (status, document), *more = _send_raw(port, head)
    assert (status, more) == (400, [])
    assert field in document


def test_requests_sent_while_one_is_being_served_wait_as_bytes(port):
    """All are answered, in order, however many there are."""
    count = 3000
    data = b"".join(_length(b"%d" % number, b"") for number in range(count))
    received = b""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        while received.count(b"HTTP/1.1 200") < count or not received.endswith(b"}"):
            received += connection.recv(1 << 20)
        sender.join(60)
    bodies = [
        part.partition(b'"body":"')[2].partition(b'"')[0]
        for part in received.split(b"\r\n\r\n")[1:]
    ]
    assert bodies == [b"%d" % number for number in range(count)]


def test_an_answer_that_came_before_a_broken_request_is_not_lost(port):
    answers = _send_raw(port, _length(b"good", b"") + b"nonsense\r\n\r\n")
    assert [status for status, _ in answers] == [200, 400]


def test_curl_with_http2(port):
    for flags in (["--http2"], ["--http2", "-H", "Transfer-Encoding: chunked"]):
        run = subprocess.run(
            ["curl", "-s", *flags, "--max-time", "5", "-d", "hello", f"http://127.0.0.1:{port}/a"],
            capture_output=True,
            check=True,
        )
        assert orjson.loads(run.stdout)["body"] == "hello"
