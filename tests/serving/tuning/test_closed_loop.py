"""The load generator against a server whose speed is known."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from serving.errors import ServingError
from serving.tuning import closed_loop
from serving.tuning.closed_loop import INFER, Load, Pass, merged

RESPONSE_S = 0.02


class Slow(grpc.GenericRpcHandler):
    """Answers each request after 20 ms, the first ones once ``least`` are in flight; refuses the
    body "bad". Records the requests, and how many were in flight at a time."""

    def __init__(self, least=1):
        self.bodies, self.peers, self.lock = [], set(), threading.Lock()
        self.in_flight, self.most_in_flight, self.least = 0, 0, least
        self.enough = threading.Event()

    def service(self, details):
        assert details.method == INFER
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, body, context):
        with self.lock:
            self.bodies.append(body)
            self.peers.add(context.peer())
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            if self.most_in_flight >= self.least:
                self.enough.set()
        try:
            if body == b"bad":
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a bad body")
            self.enough.wait(30)
            time.sleep(RESPONSE_S)
            return b"x"
        finally:
            with self.lock:
                self.in_flight -= 1


@contextmanager
def serving(least=1):
    server = grpc.server(ThreadPoolExecutor(8))
    handler = Slow(least)
    server.add_generic_rpc_handlers([handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", handler
    finally:
        server.stop(None).wait()


def _pass(address, requests, connections, is_enough):
    """The first pass of 0.4, 4 and 20 s that measured enough: a busy machine needs longer ones."""
    for seconds in (0.4, 4.0, 20.0):
        result = closed_loop.run(address, Load(requests, connections, seconds))
        if is_enough(result):
            break
    return result


def test_one_request_per_connection_is_in_flight():
    with serving(least=4) as (address, handler):
        result = _pass(address, [b"a", b"b", b"c"], 4, lambda result: len(result.latencies_ms) > 8)
    assert handler.most_in_flight == 4
    assert len(handler.peers) % 4 == 0  # of each pass
    assert set(handler.bodies) == {b"a", b"b", b"c"}
    assert result.errors == 0
    figures = merged([result])
    # A connection's answers are this far apart, and one may fall on either end of the pass.
    assert figures.requests == len(result.latencies_ms) <= 4 * (result.seconds / RESPONSE_S + 1)
    assert figures.rps == round(figures.requests / result.seconds, 1)
    assert RESPONSE_S * 1e3 <= figures.p50_ms <= figures.p95_ms <= figures.p99_ms
    assert figures.requests < len(handler.bodies)  # the lead-in


def test_the_lead_in_is_not_counted(monkeypatch):
    """The lead-in is nearly the whole pass, and every answer comes at once."""
    monkeypatch.setattr(closed_loop, "LEAD_IN", 40.0)
    with serving() as (address, handler):
        result = closed_loop.run(address, Load([b"a"], connections=1, seconds=0.025))
    assert len(result.latencies_ms) <= 3 < 10 < len(handler.bodies)


def test_a_pass_without_answers_is_an_error():
    with serving(least=2) as (address, handler):  # the one connection waits for another
        timer = threading.Timer(0.5, handler.enough.set)
        timer.start()
        result = closed_loop.run(address, Load([b"a"], connections=1, seconds=0.1))
    assert (result.latencies_ms, result.errors, result.rps) == ([], 0, 0.0)
    with pytest.raises(ServingError, match="no request was answered within a pass"):
        merged([Pass(1.0, [10.0]), result])


def test_refused_requests_are_counted_and_reported():
    with serving() as (address, _):
        result = _pass(address, [b"bad", b"good"], 2, lambda result: result.errors)
    assert result.errors > 0
    assert result.first_error == "a bad body"


def test_passes_are_merged():
    passes = [Pass(1.0, [10.0] * 100, generator_cores=0.1), Pass(1.0, [30.0] * 300)]
    figures = merged(passes)
    assert (figures.rps, figures.p50_ms, figures.requests) == (200.0, 30.0, 400)
    assert figures.generator_cores == pytest.approx(0.05)
