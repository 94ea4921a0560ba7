"""One tenant floods every resource it can hold, and another tenant does not notice.

One resource at a time. Two tenants on one gateway: ``a`` is limited to 16 concurrent requests and
floods, ``b`` calls a small model before, during and after.
"""

import contextlib
import json
import os
import socket
import struct
import threading
import time

import grpc
import httpx
import orjson
import psutil
import pytest
from tritonclient.grpc import service_pb2_grpc

from tests.e2e.grpc_models import HEAD, SEQUENCE, TALLY
from tests.echoing import add_models
from tests.running import launch, stop, wait_ready, wait_until

POLICY = """
[tenants.a]
models = ["*"]
[tenants.b]
models = ["*"]

[[limits]]
scope = "tenant"
kind = "concurrency"
amount = 16
tenants = ["a"]
"""
INFER = "/v2/models/identity_fp32/infer"
SMALL = {"inputs": [{"name": "INPUT0", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
CALLS, ATTEMPTS = 150, 5
# Below this, noise exceeds the effect of a flood: another pytest worker uses the second core. On a
# quiet machine use 0.02, with which the claim "within twice" is checked.
FLOOR_S = float(os.environ.get("FLOOD_FLOOR_S", "0.1"))
MB = 1024 * 1024


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    home = tmp_path_factory.mktemp("floods")
    add_models(home)
    tally = home / "model_repository" / "tally"
    (tally / "1").mkdir(parents=True)
    (tally / "1" / "model.py").write_text(TALLY)
    (tally / "config.pbtxt").write_text(HEAD + SEQUENCE)
    running = launch(home, "identity_fp32", "echo_llm", "tally")
    try:
        wait_ready(running)
        running.keys = {tenant: _key(running, tenant) for tenant in "ab"}
        (home / ".tidegate" / "gateway.toml.new").write_text(POLICY)
        (home / ".tidegate" / "gateway.toml.new").rename(home / ".tidegate" / "gateway.toml")
        wait_until(lambda: _call(running, "b", 1) is not None, 30, "the policy")
        yield running
    finally:
        assert stop(running) == 0, running.output


def _key(running, tenant):
    created = running.tidegate("keys", "create", tenant, "--tenant", tenant, "--json")
    return json.loads(created.stdout)["key"]


def _client(running, tenant):
    headers = {"Authorization": f"Bearer {running.keys[tenant]}"}
    return httpx.Client(base_url=running.url, headers=headers, timeout=30)


def _call(running, tenant, count, path=INFER, bodies=None):
    """The p99 (s) of ``count`` sequential calls; None while the tenant is not admitted yet."""
    durations = []
    with _client(running, tenant) as client:
        for index in range(count):
            body = bodies(index) if bodies else SMALL
            started = time.perf_counter()
            response = client.post(path, json=body)
            durations.append(time.perf_counter() - started)
            if response.status_code in (401, 403, 404):
                return None
            assert response.status_code == 200, response.text
    return sorted(durations)[int(count * 0.99)]


def _unaffected(running, flood, call=_call):
    """Tries again: the machine is shared, and a harmful flood would show each time."""
    for attempt in range(1, ATTEMPTS + 1):
        before = call(running, "b", CALLS)
        with flood(running):
            during = call(running, "b", CALLS)
        after = call(running, "b", CALLS)
        quiet = max(before, after, FLOOR_S)
        if during <= 2 * quiet or attempt == ATTEMPTS:
            assert during <= 2 * quiet, f"p99 {during * 1e3:.0f} ms, quiet {quiet * 1e3:.0f} ms"
            return
        time.sleep(2)


def _head(running, path, length, more=b""):
    return (
        b"POST %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n%bContent-Length: %d\r\n\r\n"
        % (path.encode(), running.keys["a"].encode(), more, length)
    )


@contextlib.contextmanager
def _sockets(running, count, begin, port=0):
    """``count`` connections, on each of which ``begin`` was sent as far as it was accepted."""
    connections = [
        socket.create_connection(("127.0.0.1", port or running.gateway_port)) for _ in range(count)
    ]
    try:
        pending = dict.fromkeys(connections, memoryview(begin))
        end = time.monotonic() + 4
        for connection in connections:
            connection.setblocking(False)
        while pending and time.monotonic() < end:
            for connection, rest in list(pending.items()):
                try:
                    sent = connection.send(rest[: 256 * 1024]) if rest else 0
                except BlockingIOError:
                    continue
                except OSError:
                    sent = len(rest)  # refused and closed
                if sent == len(rest):
                    del pending[connection]
                else:
                    pending[connection] = rest[sent:]
            time.sleep(0.002)
        yield connections
    finally:
        for connection in connections:
            connection.close()


@contextlib.contextmanager
def silent_connections(running):
    with _sockets(running, 400, b""):
        yield


@contextlib.contextmanager
def idle_connections(running):
    with _sockets(running, 400, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
        yield


@contextlib.contextmanager
def pipelined_requests(running):
    """Pipelined requests whose answers nobody reads."""
    one = _head(running, INFER, 0) + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with _sockets(running, 20, one * 3000):
        yield


@contextlib.contextmanager
def unfinished_bodies(running):
    with _sockets(running, 40, _head(running, INFER, 32 * MB) + bytes(20 * MB)):
        yield


@contextlib.contextmanager
def unread_answers(running):
    """4 MB requested and not read, on 40 connections."""
    raw = bytes(4 * MB)
    tensor = {
        "name": "INPUT0",
        "shape": [1, MB],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(raw)},
    }
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    more = b"Inference-Header-Content-Length: %d\r\n" % len(head)
    body = head + raw
    with _sockets(running, 40, _head(running, INFER, len(body), more) + body):
        time.sleep(2)  # until they are answered: that is work, which the limits bound
        yield


@contextlib.contextmanager
def unread_streams(running):
    """Server-sent events of 20 kB each that nobody reads."""
    text = "[delay 0.01][repeat 300] " + "x" * 20_000
    body = orjson.dumps(
        {
            "model": "echo_llm",
            "stream": True,
            "max_tokens": 1000,
            "messages": [{"role": "user", "content": text}],
        }
    )
    begin = _head(running, "/v1/chat/completions", len(body)) + body
    with _sockets(running, 40, begin):
        time.sleep(5)  # until the connections' buffers are full
        yield


@contextlib.contextmanager
def silent_grpc_streams(running):
    metadata = (("authorization", f"Bearer {running.keys['a']}"),)
    ended = threading.Event()

    def silent():
        ended.wait(60)
        yield from ()

    channels = [
        grpc.insecure_channel(
            f"127.0.0.1:{running.grpc_api_port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        for _ in range(3)
    ]
    calls = []
    try:
        for channel in channels:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            calls += [stub.ModelStreamInfer(silent(), metadata=metadata) for _ in range(200)]
        time.sleep(1)
        yield
    finally:
        ended.set()
        for call in calls:
            call.cancel()
        for channel in channels:
            channel.close()


@contextlib.contextmanager
def http2_pings(running):
    """As many pings as the connection takes, without a key."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">I", 0)[1:] + b"\4\0\0\0\0\0"
    ping = b"\0\0\x08\x06\0\0\0\0\0" + b"12345678"
    ended = threading.Event()

    def flood(connections):
        while not ended.is_set():
            try:
                connections.send(ping * 500)
                connections.recv(1 << 20)
            except BlockingIOError:
                pass
            except OSError:
                return
            time.sleep(0.02)

    with _sockets(running, 20, preface, running.grpc_api_port) as connections:
        threads = [threading.Thread(target=flood, args=(connection,)) for connection in connections]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join(5)


def _step(sequence, start=False, end=False):
    return {
        "parameters": {"sequence_id": sequence, "sequence_start": start, "sequence_end": end},
        "inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}],
    }


@contextlib.contextmanager
def open_sequences(running):
    """Sequences that are started and never ended; refused ones were not started."""
    with _client(running, "a") as client:
        for sequence in range(1, 17):
            with contextlib.suppress(httpx.TimeoutException):
                client.post("/v2/models/tally/infer", json=_step(sequence, start=True), timeout=1)
        yield
        for sequence in range(1, 17):
            with contextlib.suppress(httpx.TimeoutException):
                client.post("/v2/models/tally/infer", json=_step(sequence, end=True), timeout=1)


def _sequences(running, tenant, count):
    """Whole sequences of one step."""
    return _call(
        running,
        tenant,
        count,
        "/v2/models/tally/infer",
        lambda index: _step(index + 1000, start=True, end=True),
    )


@pytest.mark.parametrize(
    "flood",
    [
        silent_connections,
        idle_connections,
        pipelined_requests,
        unfinished_bodies,
        unread_answers,
        unread_streams,
        silent_grpc_streams,
        http2_pings,
    ],
)
def test_another_tenant_does_not_notice(stack, flood):
    _unaffected(stack, flood)


def test_another_tenant_can_start_sequences(stack):
    _unaffected(stack, open_sequences, _sequences)


@pytest.mark.parametrize("flood", [unfinished_bodies, unread_answers])
def test_memory_is_bounded(stack, flood):
    """One principal holds at most 128 MB, and everything twice for a moment."""
    gateway = next(
        process
        for process in stack.family()
        if "-m" in process.cmdline()
        and "gateway" in process.cmdline()
        and os.getpid() != process.pid
    )
    before = gateway.memory_info().rss
    with flood(stack):
        most = 0
        for _ in range(20):
            most = max(most, gateway.memory_info().rss - before)
            time.sleep(0.1)
    assert most < 400 * MB, f"{most / MB:.0f} MB"
    assert psutil.pid_exists(gateway.pid)
    assert _call(stack, "a", 20) is not None  # and the memory is given back
