"""A request with the head of the one before it is not parsed again: it must be the same as on a
connection of its own, whatever came before it."""

import json
import socket
import time
from itertools import product
from typing import BinaryIO

import pytest

from gateway.http.bounded import KNOWN_BYTES, PARSED_BYTES, BoundedProtocol, KnownHead
from tests.gateway.served import served

HEAD = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nX-Value: a\r\n\r\n"


async def _echo(scope, receive, send):
    """What the application gets to know of the request, as JSON."""
    body, message = b"", {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    assert dict(scope["headers"]) == scope["connection"].fields
    seen = {
        name: value if isinstance(value, str) else value.decode()
        for name, value in scope.items()
        if name in ("method", "path", "raw_path", "query_string", "http_version")
    }
    headers = [[name.decode(), value.decode()] for name, value in scope["headers"]]
    response = json.dumps({**seen, "headers": headers, "body": body.decode("latin-1")}).encode()
    length = [(b"content-length", b"%d" % len(response))]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": response})


@pytest.fixture(scope="module")
def port():
    with served(_echo, http=BoundedProtocol) as port:
        yield port


def _post(body: bytes, head: bytes = HEAD) -> bytes:
    return head % len(body) + body


REQUESTS = {
    "short": _post(b"abc"),
    "longer": _post(b"abcdefghijkl"),
    "empty": _post(b""),
    "over 1 KiB": _post(b"x" * 3000),
    "of other headers": _post(b"abc", HEAD.replace(b"X-Value: a", b"X-Value: b")),
    "of another path": _post(b"abc", HEAD.replace(b"/echo", b"/echo?a=1")),
    "in lower case": _post(b"abc", HEAD.replace(b"Content-Length", b"content-length")),
    "with its length last": _post(
        b"abc", b"POST /echo HTTP/1.1\r\nX-Value: a\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    ),
    "with zeros before its length": HEAD.replace(b"%d", b"00%d") % 3 + b"abc",
    "after an empty line": b"\r\n" + _post(b"abc"),
    "with a body like a head": _post(HEAD % 3 + b"abc"),
    "without a body": b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n",
    "in chunks": b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\n",
    "that expects": _post(b"abc", HEAD.replace(b"X-Value: a", b"Expect: 100-continue")),
    "that upgrades": _post(
        b"abc", HEAD.replace(b"X-Value: a", b"Connection: upgrade\r\nUpgrade: h2c")
    ),
    "that is the last": _post(b"abc", HEAD.replace(b"X-Value: a", b"Connection: close")),
    # Refused, whatever came before.
    "with two lengths": _post(b"abc", HEAD.replace(b"X-Value: a", b"Content-Length: 3")),
    "with a sign": HEAD.replace(b"%d", b"+%d") % 3 + b"abc",
    "with a length that is none": HEAD.replace(b"%d", b"%dx") % 3 + b"abc",
    "with a continued length": HEAD.replace(b"%d", b"%d\r\n 1") % 3 + b"abc",
    "without a host": _post(b"abc", HEAD.replace(b"Host: x\r\n", b"")),
}


def _responses(port: int, packets: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The status line and the body of each response; a packet is sent when the one before it has
    its response."""
    responses = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        stream = connection.makefile("rb")
        for packet in packets:
            connection.sendall(packet)
            responses.append(_response(stream))
    return responses


def _response(stream: BinaryIO) -> tuple[bytes, bytes]:
    status, length = stream.readline(), 0
    if b" 100 " in status:
        stream.readline()
        status = stream.readline()
    while (line := stream.readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    # The request's id is its own.
    return status, stream.read(length).partition(b'"request_id"')[0]


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_it_is_as_on_a_connection_of_its_own(port, name):
    [alone] = _responses(port, [REQUESTS[name]])
    for before in ("short", "longer", "of other headers", "after an empty line"):
        first, second, again = (REQUESTS[before], REQUESTS[name], REQUESTS["short"])
        assert _responses(port, [first, first, second])[-1] == alone
        if b" 200 " in alone[0] and name != "that is the last":
            expected = _responses(port, [again])
            assert _responses(port, [first, second, second, again])[-2:] == [alone, *expected]


def test_one_that_comes_in_parts_or_with_the_next_one(port):
    short, longer = REQUESTS["short"], REQUESTS["longer"]
    expected = [*_responses(port, [short]), *_responses(port, [longer])] * 2
    for size, gap in product((1, 30, len(short) - 1, len(short) + 1, 500), (0, 1)):
        text = short + longer + short + longer
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.settimeout(10)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(short * gap)
            for at in range(0, len(text), size):
                connection.sendall(text[at : at + size])
            stream, bodies = connection.makefile("rb"), []
            for _ in range(4 + gap):
                length = 0
                while (line := stream.readline()) != b"\r\n":
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                bodies.append(stream.read(length))
        assert bodies[gap:] == [body for _, body in expected]


@pytest.mark.parametrize("name", ["without a body", "in chunks"])
def test_one_without_a_length_may_follow_in_the_same_packet(port, name):
    short, other = REQUESTS["short"], REQUESTS[name]
    assert len(short + other) <= PARSED_BYTES  # parsed at once
    expected = [*_responses(port, [short]), *_responses(port, [other])]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        connection.sendall(short + other)
        stream = connection.makefile("rb")
        assert [_response(stream) for _ in expected] == expected


def test_what_came_between_in_parts_is_forgotten(port):
    short, expecting = REQUESTS["short"], REQUESTS["that expects"]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        stream = connection.makefile("rb")
        for packet, status in (
            (short, b"200"),
            (short, b"200"),
            (expecting, b"100"),
            (short, b"200"),
        ):
            for part in (packet[:50], packet[50:]) if packet is expecting else (packet,):
                connection.sendall(part)
                time.sleep(0.05)
            assert stream.readline().split()[1] == status
            if status == b"100":
                assert stream.readline() == b"\r\n"
                assert stream.readline().split()[1] == b"200"
            length = 0
            while (line := stream.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            stream.read(length)


def test_a_long_head_is_not_kept():
    class Request:
        keep_alive, waiting_for_100_continue = True, False
        fields, body = {b"content-length": b"3"}, b"abc"
        scope = {"headers": [], "path": "/"}  # noqa: RUF012

    for size, is_kept in ((1000, True), (KNOWN_BYTES, False)):
        data = _post(b"abc", HEAD.replace(b"X-Value: a", b"X-Value: " + b"a" * size))
        assert (KnownHead.of(data, Request()) is not None) is is_kept


def test_the_head_is_known(port, monkeypatch):
    parsed = []
    of = KnownHead.of

    def counted(data, request):
        parsed.append(data)
        return of(data, request)

    monkeypatch.setattr(KnownHead, "of", staticmethod(counted))
    _responses(port, [REQUESTS["short"], REQUESTS["longer"], REQUESTS["empty"]])
    assert len(parsed) == 1, "the others were not parsed"
