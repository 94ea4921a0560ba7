"""The load generator against a server whose speed is known."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from serving.tuning import closed_loop
from serving.tuning.closed_loop import INFER, Load, Pass, together

ANSWER_S = 0.02


class Slow(grpc.GenericRpcHandler):
    """Answers each request after 20 ms; refuses the body "bad". Remembers what it saw."""

    def __init__(self):
        self.bodies, self.peers, self.lock = [], set(), threading.Lock()

    def service(self, details):
        assert details.method == INFER
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, body, context):
        with self.lock:
            self.bodies.append(body)
            self.peers.add(context.peer())
        if body == b"bad":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a bad body")
        time.sleep(ANSWER_S)
        return b"x"


@contextmanager
def serving():
    server = grpc.server(ThreadPoolExecutor(8))
    handler = Slow()
    server.add_generic_rpc_handlers([handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", handler
    finally:
        server.stop(None).wait()


def test_as_many_are_under_way_as_there_are_connections():
    with serving() as (address, handler):
        found = closed_loop.run(address, Load([b"a", b"b", b"c"], connections=4, seconds=0.8))
    assert len(handler.peers) == 4
    assert set(handler.bodies) == {b"a", b"b", b"c"}
    assert found.errors == 0
    figures = together([found])
    assert 0.4 * 4 / ANSWER_S < figures.rps <= 4 / ANSWER_S
    assert ANSWER_S * 1e3 <= figures.p50_ms <= figures.p95_ms <= figures.p99_ms
    assert figures.requests == len(found.latencies_ms) < len(handler.bodies)  # the lead-in


def test_what_is_refused_is_counted_and_told():
    with serving() as (address, _):
        found = closed_loop.run(address, Load([b"bad", b"good"], connections=2, seconds=0.3))
    assert found.errors > 0
    assert found.first_error == "a bad body"


def test_passes_are_put_together():
    passes = [Pass(1.0, [10.0] * 100, generator_cores=0.1), Pass(1.0, [30.0] * 300)]
    figures = together(passes)
    assert (figures.rps, figures.p50_ms, figures.requests) == (200.0, 30.0, 400)
    assert figures.generator_cores == pytest.approx(0.05)
