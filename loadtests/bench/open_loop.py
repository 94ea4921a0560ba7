"""An open loop: each request is sent when it is due, whatever has become of those before it.

One thread, sockets and ``select``: a request costs the generator 100 to 180 us of CPU, so that on
two cores it takes little from what it measures.
"""

import re
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from loadtests.bench.errors import BenchError
from loadtests.bench.wrk import LoadTarget

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"
TIMEOUT_S = 30.0
Milliseconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Waits:
    """Of each request, in milliseconds: from when it was due until its last byte had come, and
    until it was sent (how late the generator was)."""

    whole_ms: Milliseconds
    lag_ms: Milliseconds


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Times at which requests are due, in seconds from the start: at random, ``rate`` a second."""
    gaps_s = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    return [float(at_s) for at_s in np.cumsum(gaps_s)]


def send_when_due(target: LoadTarget, due_s: Sequence[float]) -> Waits:
    """Send the target's first body at each of these times, on as many connections as it takes.

    Raises BenchError for a response that is not 200, or none within ``TIMEOUT_S``.
    """
    address = urlsplit(target.url)
    message = _message(target)
    whole_ms, lag_ms = np.zeros(len(due_s)), np.zeros(len(due_s))
    idle: list[socket.socket] = []
    under_way: dict[socket.socket, tuple[int, bytes]] = {}  # its request, and what has come of it
    next_index, n_requests = 0, len(due_s)
    clock = time.perf_counter
    began = clock()
    try:
        while next_index < n_requests or under_way:
            wait_s = TIMEOUT_S
            if next_index < n_requests:
                wait_s = max(0.0, began + due_s[next_index] - clock())
            readable, _, _ = select.select(list(under_way), (), (), wait_s)
            if not readable and next_index == n_requests:
                raise BenchError(f"{target.name}: no answer within {TIMEOUT_S:g} s")
            for connection in readable:
                index, received = under_way[connection]
                piece = connection.recv(1 << 16)
                if not piece:
                    raise BenchError(f"{target.name} closed a connection before its answer")
                received += piece
                if _is_whole(received):
                    whole_ms[index] = 1000 * (clock() - began - due_s[index])
                    del under_way[connection]
                    idle.append(connection)
                else:
                    under_way[connection] = index, received
            while next_index < n_requests and began + due_s[next_index] <= clock():
                connection = idle.pop() if idle else _connect(address.hostname, address.port)
                under_way[connection] = next_index, b""
                lag_ms[next_index] = 1000 * (clock() - began - due_s[next_index])
                connection.sendall(message)
                next_index += 1
    finally:
        for connection in (*idle, *under_way):
            connection.close()
    return Waits(whole_ms, lag_ms)


def _connect(host: str | None, port: int | None) -> socket.socket:
    connection = socket.create_connection((host, port), TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _message(target: LoadTarget) -> bytes:
    address, body = urlsplit(target.url), target.bodies[0]
    headers = {"Host": address.netloc, **target.headers, "Content-Length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {address.path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def _is_whole(received: bytes) -> bool:
    """Whether all of a response has come. Raises BenchError for one that is not 200."""
    head, separator, body = received.partition(_HEAD_END)
    if not separator:
        return False
    length = _LENGTH.search(head)
    if not head.startswith(b"HTTP/1.1 200") or length is None:
        raise BenchError(f"not an answer: {received[:200]!r}")
    return len(body) >= int(length[1])
