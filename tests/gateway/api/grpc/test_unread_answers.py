"""Responses that are not read and bodies that do not end: who is charged, and for how long."""

import asyncio
import contextlib
import socket
import threading
import time

import orjson
import pytest
import uvicorn

from gateway.errors import NoCapacity, QuotaExceeded, RequestTimeout
from gateway.http.bounded import BoundedProtocol, ConnectionLimits
from gateway.http.handler import Endpoint, open_to_all
from gateway.http.memory_budget import MemoryBudget
from gateway.http.request_context import ClientGone, RequestContext
from gateway.policy.access import Access
from gateway.policy.gateway_toml import NO_FILE
from gateway.policy.principal import Grant, Principal
from gateway.render import PIECE_BYTES, Reply
from tests.running import wait_until

SEND_TIMEOUT_S = 1.0
LARGE = 16 * 1024 * 1024
HANG_S = 20.0


class App:
    """Responds with as many bytes as the path says; ``slots`` has one entry per open response."""

    connection_limits = ConnectionLimits(send_timeout_s=SEND_TIMEOUT_S)

    def __init__(self):
        self.memory = MemoryBudget(2 * LARGE, LARGE, lambda: False)
        self.slots, self.errors, self.faults = [], [], []

    async def __call__(self, scope, receive, send):
        context = RequestContext(scope, receive, Access(NO_FILE), 2 * LARGE, 5.0)
        context.memory_budget, context.body_timeout_s = self.memory, SEND_TIMEOUT_S
        context.principal = Principal("a", "a")
        scope |= {"context": context, "path_params": {}}
        try:
            await Endpoint(self.respond)(scope, receive, send)
        except ClientGone:
            pass
        except (RequestTimeout, QuotaExceeded) as error:
            self.faults.append(error)
            await Reply(400, b"no").send(send)
        finally:
            context.release_buffered()

    @open_to_all
    async def respond(self, context):
        body = await context.body()
        await context.enter(self.slot())
        return Reply(200, b"a" * int(context.path.strip("/") or len(body)))

    @contextlib.asynccontextmanager
    async def slot(self):
        self.slots.append(object())
        try:
            yield
        except BaseException as error:
            self.errors.append(error)
            raise
        finally:
            self.slots.pop()


@pytest.fixture
def served():
    app = App()
    config = uvicorn.Config(
        app,
        port=0,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        loop="uvloop",
        proxy_headers=False,  # else the server would see its middleware instead of the app
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield app, server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


@contextlib.contextmanager
def _connected(port):
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    connection.settimeout(HANG_S)
    connection.connect(("127.0.0.1", port))
    with connection:
        yield connection


def _get(size):
    return b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % size


def _read(connection, size, pause_s=0.0):
    received = bytearray()
    while len(received) < size:
        part = connection.recv(65536)
        if not part:
            break
        received += part
        time.sleep(pause_s)
    return bytes(received)


def test_an_unread_response_keeps_its_slot_until_it_is_cut(served):
    app, port = served
    with _connected(port) as connection:
        connection.sendall(_get(LARGE))
        wait_until(lambda: app.slots and app.memory.total == LARGE, HANG_S, "the answer")
        wait_until(lambda: not app.slots, HANG_S, "the cut")
        wait_until(lambda: app.memory.total == 0, HANG_S, "the memory")
    assert [type(error) for error in app.errors] == [ClientGone]


def test_one_that_is_read_slowly_is_not_cut(served):
    app, port = served
    with _connected(port) as connection:
        connection.sendall(_get(1_000_000))
        received = _read(connection, 1_000_000, 0.05)  # longer than the timeout
    assert received.startswith(b"HTTP/1.1 200") and received.count(b"a") >= 1_000_000 - 200
    wait_until(lambda: not app.slots, HANG_S, "the end")
    assert app.errors == []


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 1_234_567])
def test_every_size_arrives_whole_and_another_request_may_follow(served, size):
    _, port = served
    with _connected(port) as connection:
        for _ in range(2):
            connection.sendall(_get(size) if size else b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            received = _read(connection, 1)
            head, _, body = received.partition(b"\r\n\r\n")
            assert b"content-length: %d" % size in head
            body += _read(connection, size - len(body))
            assert body == b"a" * size


def test_a_client_that_leaves_in_the_middle_frees_its_slot(served):
    app, port = served
    app.connection_limits = ConnectionLimits(send_timeout_s=600)  # not by being cut
    with _connected(port) as connection:
        connection.sendall(_get(LARGE))
        wait_until(lambda: bool(app.slots), HANG_S, "the answer")
    wait_until(lambda: not app.slots and app.memory.total == 0, HANG_S, "the end")


def test_pipelined_responses_that_are_never_read_end_too(served):
    """Small ones: each is complete at once, and they must not pile up."""
    app, port = served
    with _connected(port) as connection:
        with contextlib.suppress(OSError):
            for _ in range(3000):
                connection.sendall(_get(20_000) * 5)
        wait_until(lambda: not app.slots, HANG_S, "the end")


def test_unread_responses_are_counted_together(served):
    app, port = served
    with _connected(port) as first, _connected(port) as second:
        first.sendall(_get(LARGE))
        wait_until(lambda: app.memory.total == LARGE, HANG_S, "the first")
        second.sendall(_get(LARGE))
        assert second.recv(1000).startswith(b"HTTP/1.1 400")
    assert "read the answers" in app.faults[0].message
    assert app.faults[0].retry_after_s == 1


def test_a_body_that_stops_coming_is_refused(served):
    app, port = served
    with _connected(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n")
        connection.sendall(bytes(1_000_000))
        wait_until(lambda: app.memory.total == 1_000_000, HANG_S, "the bytes")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
    assert isinstance(app.faults[0], RequestTimeout)
    wait_until(lambda: app.memory.total == 0, HANG_S, "the memory")


def test_bodies_that_do_not_end_are_counted_together(served):
    app, port = served
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(_connected(port))
            connection.sendall(head)
            with contextlib.suppress(OSError):
                connection.sendall(bytes(LARGE // 3))
        wait_until(lambda: app.faults, HANG_S, "a refusal")
        assert isinstance(app.faults[0], QuotaExceeded)
        assert app.memory.total <= LARGE


async def test_contexts_exit_in_reverse_order_and_with_the_error():
    exits = []

    class Context:
        def __init__(self, name):
            self.name = name

        async def __aenter__(self):
            return self.name

        async def __aexit__(self, error_type, error, traceback):
            exits.append((self.name, error_type, error))

    async def receive(): ...

    for fault in (None, NoCapacity("full")):
        exits.clear()
        context = RequestContext(
            {"path": "/", "headers": [], "path_params": {}}, receive, Access(NO_FILE), 1, 1.0
        )

        @open_to_all
        async def handler(context, fault=fault):
            assert [await context.enter(Context(name)) for name in "ab"] == ["a", "b"]
            if fault:
                raise fault
            return Reply(200, b"")

        async def send(message):
            assert exits == []

        with contextlib.suppress(NoCapacity):
            await Endpoint(handler)({"context": context, "path_params": {}}, receive, send)
        assert exits == [(name, type(fault) if fault else None, fault) for name in "ba"]


def test_one_callers_bytes_are_not_anothers():
    tenants = [False]
    memory = MemoryBudget(100, 40, lambda: tenants[0])
    callers = {name: Principal(name, name, Grant(tenant=name[0])) for name in ("a1", "a2", "b1")}
    memory.take(callers["a1"], 30, 0)
    with pytest.raises(QuotaExceeded, match="finish sending"):
        memory.take(callers["a1"], 11, 0)
    memory.take(callers["a2"], 30, 0)
    memory.take(callers["a1"], 10, 30)
    with pytest.raises(NoCapacity):
        memory.take(callers["b1"], 31, 0)
    memory.give_back(callers["a1"], 40)
    memory.give_back(callers["a2"], 30)
    assert memory.total == 0 and orjson.dumps(memory._callers) == b"{}"
    # What can no longer be refused counts too; taking no bytes checks whether there is room.
    with memory.counted(callers["a1"], 50):
        with pytest.raises(QuotaExceeded, match="read the answers"):
            memory.take(callers["a1"], 0, 0)
        memory.take(callers["b1"], 0, 0)
    memory.take(callers["a1"], 0, 0)
    assert memory.total == 0 and orjson.dumps(memory._callers) == b"{}"
    # With tenants, no tenant takes more than half, however many keys it has.
    tenants[0] = True
    memory.take(callers["a1"], 30, 0)
    with pytest.raises(QuotaExceeded, match="tenant"):
        memory.take(callers["a2"], 30, 0)
    memory.take(callers["b1"], 40, 0)
    # A single request is never refused: the body limit bounds it.
    alone = MemoryBudget(10, 5, lambda: True)
    alone.take(callers["a1"], 50, 0)
    alone.take(callers["a1"], 50, 50)


async def test_a_body_costs_no_more_than_its_size_on_the_way():
    assert asyncio.get_running_loop()  # the context needs one
    parts = [b"a" * 1000] * 3000

    async def receive():
        return {"type": "http.request", "body": parts.pop(), "more_body": bool(parts)}

    context = RequestContext({"path": "/", "headers": []}, receive, Access(NO_FILE), 10**7, 5.0)
    assert len(await context.body()) == 3_000_000
