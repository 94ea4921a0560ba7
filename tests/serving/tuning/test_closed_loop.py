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

ANSWER_S = 0.02


class Slow(grpc.GenericRpcHandler):
    """Answers each request after 20 ms, the first ones once ``least`` are under way; refuses the
    body "bad". Remembers what it saw, and how many were under way at a time."""

    def __init__(self, least=1):
        self.bodies, self.peers, self.lock = [], set(), threading.Lock()
        self.under_way, self.most, self.least = 0, 0, least
        self.enough = threading.Event()

    def service(self, details):
        assert details.method == INFER
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, body, context):
        with self.lock:
            self.bodies.append(body)
            self.peers.add(context.peer())
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            if self.most >= self.least:
                self.enough.set()
        try:
            if body == b"bad":
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a bad body")
            self.enough.wait(30)
            time.sleep(ANSWER_S)
            return b"x"
        finally:
            with self.lock:
                self.under_way -= 1


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
    """The first pass of 0.8, 4 and 20 s that saw enough: a busy machine needs longer ones."""
    for seconds in (0.8, 4.0, 20.0):
        found = closed_loop.run(address, Load(requests, connections, seconds))
        if is_enough(found):
            break
    return found


def test_as_many_are_under_way_as_there_are_connections():
    with serving(least=4) as (address, handler):
        found = _pass(address, [b"a", b"b", b"c"], 4, lambda found: len(found.latencies_ms) > 8)
    assert handler.most == 4
    assert len(handler.peers) % 4 == 0  # of each pass
    assert set(handler.bodies) == {b"a", b"b", b"c"}
    assert found.errors == 0
    figures = merged([found])
    # A connection's answers are this far apart, and one may fall on each end of the pass.
    assert figures.requests == len(found.latencies_ms) <= 4 * (found.seconds / ANSWER_S + 1)
    assert figures.rps == round(figures.requests / found.seconds, 1)
    assert ANSWER_S * 1e3 <= figures.p50_ms <= figures.p95_ms <= figures.p99_ms
    assert figures.requests < len(handler.bodies)  # the lead-in


def test_what_comes_before_a_pass_is_not_counted(monkeypatch):
    """Every answer comes at once, in a lead-in of nearly all the time there is."""
    monkeypatch.setattr(closed_loop, "LEAD_IN", 40.0)
    with serving() as (address, handler):
        found = closed_loop.run(address, Load([b"a"], connections=1, seconds=0.05))
    assert len(found.latencies_ms) <= 3 < 10 < len(handler.bodies)


def test_a_pass_in_which_nothing_was_answered_is_told():
    with serving(least=2) as (address, handler):  # the one connection waits for another
        releasing = threading.Timer(0.5, handler.enough.set)
        releasing.start()
        found = closed_loop.run(address, Load([b"a"], connections=1, seconds=0.1))
    assert (found.latencies_ms, found.errors, found.rps) == ([], 0, 0.0)
    with pytest.raises(ServingError, match="no request was answered within a pass"):
        merged([Pass(1.0, [10.0]), found])


def test_what_is_refused_is_counted_and_told():
    with serving() as (address, _):
        found = _pass(address, [b"bad", b"good"], 2, lambda found: found.errors)
    assert found.errors > 0
    assert found.first_error == "a bad body"


def test_passes_are_put_together():
    passes = [Pass(1.0, [10.0] * 100, generator_cores=0.1), Pass(1.0, [30.0] * 300)]
    figures = merged(passes)
    assert (figures.rps, figures.p50_ms, figures.requests) == (200.0, 30.0, 400)
    assert figures.generator_cores == pytest.approx(0.05)
