"""The open loop, against a server that answers as it is told."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from loadtests.bench.benchmarks_added import _floor
from loadtests.bench.errors import BenchError
from loadtests.bench.open_loop import poisson, send_when_due
from loadtests.bench.report import Verdict
from loadtests.bench.wrk import LoadTarget

BODY = b"x" * 100_000  # more than one read


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    pauses_s: list[float]  # before the first answers
    status = 200

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.pauses_s:
            time.sleep(self.pauses_s.pop())
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *arguments: object) -> None:
        """Nothing, to nobody."""


@contextmanager
def server(pauses_s: list[float], status: int = 200) -> Iterator[LoadTarget]:
    handler = type("Told", (Handler,), {"pauses_s": pauses_s, "status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_address[1]}/infer"
        yield LoadTarget("a server", url, {"Content-Type": "application/json"}, [b"{}"])
        http.shutdown()


def test_a_slow_answer_keeps_no_other_request_waiting():
    with server([3.0]) as target:
        waits = send_when_due(target, [0.0, 0.1, 0.2, 0.3, 0.4])
    assert waits.whole_ms[0] >= 3000
    assert np.all(waits.whole_ms[1:] < 2500)
    assert np.all(waits.lag_ms < 2500)
    assert np.all(waits.whole_ms >= waits.lag_ms)


def test_requests_are_sent_when_they_are_due():
    with server([]) as target:
        began = time.perf_counter()
        waits = send_when_due(target, [0.2, 0.5])
        assert time.perf_counter() - began >= 0.5
    assert np.all(waits.whole_ms > 0)


def test_a_refusal_is_no_answer():
    with server([], status=503) as target, pytest.raises(BenchError, match="503"):
        send_when_due(target, [0.0])


def test_arrivals_are_the_same_for_the_same_seed_and_as_many_as_the_rate_says():
    due_s = poisson(200, 10, seed=1)
    assert due_s == poisson(200, 10, seed=1) != poisson(200, 10, seed=2)
    assert len(due_s) == 2000
    assert due_s == sorted(due_s)
    assert 9 < due_s[-1] < 11


@pytest.mark.parametrize(
    ("added_ms", "is_quiet", "verdict"),
    [
        ([1.0, 2.0, 2.5], True, Verdict.HELD),
        ([-0.5, 0.0, 2.5], True, Verdict.HELD),
        ([4.0, 5.0, 60.0], True, Verdict.MISSED),
        ([2.0, 5.0, 6.0], True, Verdict.UNCLEAR),
        ([4.0, 5.0, 60.0], False, Verdict.UNCLEAR),
        ([1.0, 2.0, 2.5], False, Verdict.HELD),
    ],
)
def test_a_busy_machine_makes_no_floor_missed(added_ms, is_quiet, verdict):
    assert _floor("p99", added_ms, 3.0, is_quiet).verdict is verdict
