"""Without a key a client can do almost nothing at the gRPC port, and it costs nothing."""

import contextlib
import os
import socket
import struct
import threading
import time

import grpc
import psutil
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from tritonclient.grpc import InferenceServerClient

from gateway.api.grpc import health
from gateway.api.grpc.reflection import Reflection
from tests.e2e.grpc_models import RunningGrpcServer, serving
from tests.e2e.test_grpc_api import _input
from tests.running import wait_until

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVICE = b"\n" + bytes([29]) + b"inference.GRPCInferenceService"[:29]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


def _frame(frame_type: int, flags: int, stream: int, data: bytes = b"") -> bytes:
    return (
        struct.pack(">I", len(data))[1:]
        + bytes([frame_type, flags])
        + struct.pack(">I", stream)
        + data
    )


def _field(name: bytes, value: bytes) -> bytes:
    """An HPACK literal without indexing; both are shorter than 127 bytes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _headers(path: str) -> bytes:
    pairs = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"x"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]
    return b"".join(_field(*pair) for pair in pairs)


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("strangers")) as running:
        yield running


@pytest.fixture(scope="module")
def api(triton, tmp_path_factory):
    with RunningGrpcServer(triton, tmp_path_factory.mktemp("api"), deadline_s=5.0) as running:
        yield running


class Sender(threading.Thread):
    """A call with a message of ``size`` bytes whose end is missing, sent as HTTP/2's flow control
    allows."""

    def __init__(self, port: int, path: str, size: int, stop: threading.Event) -> None:
        super().__init__()
        self.raw = socket.create_connection(("127.0.0.1", port))
        self.raw.settimeout(0.2)
        self._path, self._size, self._stop_it = path, size, stop
        self._window = self._stream_window = 65535 - 5
        self._buffered = b""

    def run(self) -> None:
        with contextlib.suppress(OSError):
            self._send()
        self._stop_it.wait()
        self.raw.close()

    def _send(self) -> None:
        self.raw.sendall(PREFACE + SETTINGS + _frame(1, 4, 1, _headers(self._path)))
        self.raw.sendall(_frame(0, 0, 1, b"\0" + struct.pack(">I", self._size)))
        remaining = self._size - 10
        while remaining and not self._stop_it.is_set():
            part = min(self._window, self._stream_window, 16384, remaining)
            if part > 0:
                self.raw.sendall(_frame(0, 0, 1, bytes(part)))
                self._window -= part
                self._stream_window -= part
                remaining -= part
            elif not self._listen():
                return

    def _listen(self) -> bool:
        with contextlib.suppress(TimeoutError):
            self._buffered += self.raw.recv(65536)
        while len(self._buffered) >= 9:
            end = 9 + int.from_bytes(self._buffered[:3], "big")
            if len(self._buffered) < end:
                break
            head, body = self._buffered[:9], self._buffered[9:end]
            self._buffered = self._buffered[end:]
            frame_type, flags, stream = head[3], head[4], int.from_bytes(head[5:9], "big")
            if frame_type in (3, 7):  # RST_STREAM, GOAWAY
                return False
            if frame_type in (4, 6) and not flags & 1:  # SETTINGS, PING
                self.raw.sendall(_frame(frame_type, 1, 0, body if frame_type == 6 else b""))
            if frame_type == 8:  # WINDOW_UPDATE
                more = int.from_bytes(body, "big")
                self._window += more if stream == 0 else 0
                self._stream_window += more if stream else 0
        return True


@contextlib.contextmanager
def unfinished(api, path: str, count: int, size: int = 31 << 20):
    stop = threading.Event()
    senders = [Sender(api.port, path, size, stop) for _ in range(count)]
    for sender in senders:
        sender.start()
    try:
        yield
    finally:
        stop.set()
        for sender in senders:
            sender.join()


def _grown(before: int) -> int:
    return psutil.Process().memory_info().rss - before


@pytest.mark.parametrize(
    "path",
    [
        CHECK,
        WATCH,
        "/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ModelStreamInfer",
        "/inference.GRPCInferenceService/RepositoryIndex",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/no.such.Service/Method",
    ],
)
def test_clients_without_a_key_hold_no_memory(api, path):
    """20 unfinished messages of 31 MB once took 1.2 GB through Health/Check."""
    before = psutil.Process().memory_info().rss
    with unfinished(api, path, 12):
        most, ends = 0, time.monotonic() + 2.5
        while time.monotonic() < ends:
            most = max(most, _grown(before))
            time.sleep(0.1)
    assert most < (health.READS * 2 + 1) * 32 << 20, most >> 20


def test_a_check_whose_message_does_not_come_is_ended(api, monkeypatch):
    monkeypatch.setattr(health, "MESSAGE_S", 0.5)
    with grpc.insecure_channel(api.address) as channel:
        stop = threading.Event()
        call = channel.stream_unary(CHECK).future(iter(stop.wait, True))
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        stop.set()


def test_health_is_answered_under_unfinished_calls(api):
    with unfinished(api, CHECK, 6), grpc.insecure_channel(api.address) as channel:
        check = channel.unary_unary(CHECK)
        for _ in range(5):
            assert check(b"", timeout=20) == health.SERVING
            time.sleep(0.1)


def test_a_long_check_is_refused(api):
    with grpc.insecure_channel(api.address) as channel:

        def code() -> grpc.StatusCode:
            return channel.unary_unary(CHECK).future(bytes(1000)).code()

        # Until the previous test's calls have ended, it is answered unread.
        wait_until(lambda: code() is grpc.StatusCode.INVALID_ARGUMENT, 30, "the refusal")


def test_watch_reports_the_status_and_its_changes(api, monkeypatch):
    with grpc.insecure_channel(api.address) as channel:
        watch = channel.unary_stream(WATCH)
        unknown = watch(b"\n\x01x")
        assert next(unknown) == health.SERVICE_UNKNOWN
        calls = [watch(b"\n\x1einference.GRPCInferenceService"), watch(b"")]
        assert [next(call) for call in calls] == [health.SERVING] * 2
        monkeypatch.setattr(
            "gateway.api.grpc.server.readiness", lambda gateway: {"m": "is not there"}
        )
        assert [next(call) for call in calls] == [health.NOT_SERVING] * 2
        monkeypatch.undo()
        assert [next(call) for call in calls] == [health.SERVING] * 2
        for call in (unknown, *calls):
            call.cancel()


def test_watches_are_few_and_end(api, monkeypatch):
    monkeypatch.setattr(health, "WATCH_S", 3.0)
    with grpc.insecure_channel(api.address) as channel:
        calls = [channel.unary_stream(WATCH)(b"") for _ in range(health.WATCHES_FROM_ONE + 5)]
        for call in calls:
            with contextlib.suppress(grpc.RpcError):
                list(call)
        codes = [call.code() for call in calls]
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 5
    assert codes.count(grpc.StatusCode.UNAVAILABLE) == health.WATCHES_FROM_ONE


def _reflect(api, version: str, *questions, metadata=()):
    """The reflection responses, as plain messages."""
    reflection = Reflection(set())
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    with grpc.insecure_channel(api.address) as channel:
        requests = (reflection._request(**question).SerializeToString() for question in questions)
        call = channel.stream_stream(path)(requests, metadata=metadata)
        return [reflection._response.FromString(message) for message in call]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_is_enough_to_call(api, version):
    """As grpcurl does: list the services, find one, build its messages, call it."""
    metadata = tuple(api.headers().items())
    listed, file, health_file, method, missing = _reflect(
        api,
        version,
        {"list_services": "*"},
        {"file_containing_symbol": "inference.GRPCInferenceService"},
        {"file_by_filename": "grpc/health/v1/health.proto"},
        {"file_containing_symbol": "inference.GRPCInferenceService.ModelInfer"},
        {"file_containing_symbol": "inference.NoSuchThing"},
        metadata=metadata,
    )
    assert [service.name for service in listed.list_services_response.service] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]
    assert missing.error_response.error_code == 5
    assert method.file_descriptor_response == file.file_descriptor_response
    files = file.file_descriptor_response.file_descriptor_proto
    pool = descriptor_pool.DescriptorPool()
    for data in reversed([*files, *health_file.file_descriptor_response.file_descriptor_proto]):
        pool.Add(descriptor_pb2.FileDescriptorProto.FromString(data))
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    names = set(service.methods_by_name)
    assert {"ModelInfer", "ModelStreamInfer", "ServerLive"} <= names
    assert "RepositoryModelLoad" not in names
    assert "Watch" in pool.FindServiceByName("grpc.health.v1.Health").methods_by_name


def test_reflection_needs_a_key(api):
    with pytest.raises(grpc.RpcError) as caught:
        _reflect(api, "v1", {"list_services": "*"})
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_silent_connections_are_ended(api):
    """Within ten seconds; it used to be a minute."""
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", api.port))) for _ in range(3)
        ]
        for raw, said in zip(connections, (b"", PREFACE, PREFACE[:5]), strict=True):
            raw.sendall(said)
            raw.settimeout(30)
        for raw in connections:
            with contextlib.suppress(ConnectionResetError):
                while raw.recv(4096):
                    pass


def test_a_flood_of_pings_gets_enhance_your_calm(api):
    with socket.create_connection(("127.0.0.1", api.port)) as raw:
        raw.settimeout(20)
        raw.sendall(PREFACE + SETTINGS + _frame(4, 1, 0))
        received = b""
        with contextlib.suppress(ConnectionError):
            for _ in range(10):
                raw.sendall(_frame(6, 0, 0, os.urandom(8)))
                time.sleep(0.02)
        with contextlib.suppress(ConnectionError):
            while b"too_many_pings" not in received and (data := raw.recv(65536)):
                received += data
        assert b"too_many_pings" in received


def test_others_are_served_meanwhile(api):
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", api.port)))
        with InferenceServerClient(api.address) as client:
            client.infer("echo", [_input([1.0], "FP32")], headers=api.headers())


def test_a_small_request_has_a_small_bound(api):
    """30 MB for a model's name: every method except the two that infer has its own bound."""
    with grpc.insecure_channel(api.address) as channel:
        for name in ("ModelMetadata", "ModelReady", "ServerLive", "RepositoryIndex"):
            call = channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"\n\0" * 3_000_000, metadata=tuple(api.headers().items()))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "4096 bytes" in caught.value.details()


def test_the_number_of_connections_is_bounded(triton, tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.api.grpc.server.MOST_CONNECTIONS", 20)
    with RunningGrpcServer(triton, tmp_path / "own") as server, contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(60):
            sockets.append(socket.create_connection(("127.0.0.1", server.port)))
            stack.callback(sockets[-1].close)

        def closed() -> int:
            count = 0
            for raw in sockets:
                raw.setblocking(False)
                try:
                    while data := raw.recv(4096):
                        pass
                    count += not data
                except BlockingIOError:
                    pass
                except ConnectionResetError:
                    count += 1
            return count

        wait_until(lambda: closed() >= 40, 30, "what is too much is closed")
