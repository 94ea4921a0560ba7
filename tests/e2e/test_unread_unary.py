"""Clients that do not read their answers, as HTTP/2's flow control shows."""

import asyncio
import contextlib
import gc
import socket
import struct
import threading
import time

import grpc
import numpy as np
import psutil
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2
from tritonclient.utils import InferenceServerException

from gateway.api.grpc.caller_bounds import MAX_ARRIVING, CallerBounds
from gateway.api.grpc.unread import allowed_s
from tests.e2e.grpc_models import ONE, RunningGrpcServer, serving
from tests.e2e.test_grpc_strangers import PREFACE, SETTINGS, _field, _frame
from tests.running import wait_until

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
MB = 1024 * 1024
# Returns x zeros.
ZEROS = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.zeros(
            int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy().item()),
            np.float32))]) for request in requests]
"""
LONG = ONE.replace('"y" data_type: TYPE_FP32 dims: 1', '"y" data_type: TYPE_FP32 dims: -1')
OPEN = """
[tenants.all]
models = ["*"]
[tenants.some]
models = ["*"]
"""
ONE_AT_ONCE = (
    OPEN
    + """
[[limits]]
scope = "tenant"
kind = "concurrency"
amount = 1
tenants = ["some"]
"""
)
SEND_TIMEOUT_S = 1.0
CANCELLED = _field(b"grpc-status", b"1")


class NonReader:
    """A connection that answers pings and settings, but never opens the window beyond HTTP/2's
    first 65,535 bytes of answers. ``ended`` has the numbers of the calls that got a status."""

    def __init__(self, api, tenant: str = "all") -> None:
        self._raw = socket.create_connection(("127.0.0.1", api.port))
        self._raw.sendall(PREFACE + SETTINGS)
        self._authorization = api.headers(tenant)["authorization"].encode()
        self._next = 1
        self.received: dict[int, int] = {}
        self.ended: dict[int, bytes] = {}
        self._listening = threading.Thread(target=self._listen)
        self._listening.start()

    def call(self, path: str, *messages: bytes, is_last: bool = True) -> int:
        """Send a whole call and return its number; ``messages`` have to be small."""
        body = b"".join(b"\0" + struct.pack(">I", len(message)) + message for message in messages)
        return self.begin(path, body, is_last=is_last)

    def begin(self, path: str, body: bytes, *, is_last: bool = False) -> int:
        """Start a call that sends ``body`` (frames of messages, or parts of them); returns its
        number."""
        number, self._next = self._next, self._next + 2
        pairs = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", b"x"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"authorization", self._authorization),
        ]
        headers_frame = _frame(1, 4, number, b"".join(_field(*pair) for pair in pairs))
        self._raw.sendall(headers_frame + _frame(0, int(is_last), number, body))
        return number

    def _listen(self) -> None:
        buffered = b""
        with contextlib.suppress(OSError):
            while part := self._raw.recv(65536):
                buffered += part
                while len(buffered) >= 9 + (size := int.from_bytes(buffered[:3], "big")):
                    frame_type, flags = buffered[3], buffered[4]
                    number = int.from_bytes(buffered[5:9], "big")
                    body, buffered = buffered[9 : 9 + size], buffered[9 + size :]
                    if frame_type == 0:
                        self.received[number] = self.received.get(number, 0) + size
                    elif frame_type == 1 and flags & 1:  # trailers
                        self.ended[number] = body
                    elif frame_type in (4, 6) and not flags & 1:
                        self._raw.sendall(
                            _frame(frame_type, 1, 0, body if frame_type == 6 else b"")
                        )

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_RDWR)
        self._listening.join()
        self._raw.close()


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("unread"), {"zeros": (ZEROS, LONG)}) as running:
        yield running


@pytest.fixture
def api(triton, tmp_path):
    with RunningGrpcServer(
        triton, tmp_path / "api", ONE_AT_ONCE, send_timeout_s=SEND_TIMEOUT_S, max_inflight=40
    ) as running:
        yield running


@pytest.fixture
def non_reader(api):
    client = NonReader(api)
    yield client
    client.close()


@pytest.fixture
def non_reader_of_some(api):
    client = NonReader(api, "some")
    yield client
    client.close()


def _request(size: int) -> bytes:
    """A request for an answer of ``size`` bytes."""
    message = service_pb2.ModelInferRequest(model_name="zeros")
    message.inputs.add(name="x", datatype="FP32", shape=[1])
    message.raw_input_contents.append(np.array([size // 4], np.float32).tobytes())
    return message.SerializeToString()


def _infer(api, size: int, tenant: str = "all") -> int:
    tensor = InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.array([size // 4], np.float32))
    with InferenceServerClient(api.address) as client:
        response = client.infer("zeros", [tensor], headers=api.headers(tenant))
        return response.as_numpy("y").nbytes


def _resident() -> int:
    return psutil.Process().memory_info().rss


def _held(api) -> int:
    return api.gateway.memory_budget.total


def test_an_unread_answer_is_cut_off(api, non_reader_of_some):
    """It used to be held for as long as its client liked, with its slot in the limits."""
    assert allowed_s(SEND_TIMEOUT_S, 64 * MB) == 5 * SEND_TIMEOUT_S
    non_reader = non_reader_of_some
    number = non_reader.call(INFER, _request(64 * MB))
    wait_until(lambda: _held(api) > 64 * MB, 30, "the answer")
    with pytest.raises(InferenceServerException, match="is used up"):
        _infer(api, 4, "some")  # its slot is taken
    assert number not in non_reader.ended
    most = _resident()
    wait_until(lambda: number in non_reader.ended, 30, "the end")
    assert CANCELLED in non_reader.ended[number]
    assert non_reader.received[number] == 65535
    wait_until(lambda: _held(api) == 0, 30, "what was held")
    wait_until(lambda: most - _resident() > 100 * MB, 30, "the answer's memory, gRPC's copy too")
    wait_until(lambda: _succeeds(api), 30, "the place in the limits")
    # The connection lives on, and another call on it is answered as far as the window allows.
    non_reader.call(INFER, _request(4))
    wait_until(lambda: _held(api) > 0, 30, "the next one")


def _succeeds(api) -> bool:
    with contextlib.suppress(InferenceServerException):
        return _infer(api, 4, "some") == 4
    return False


def test_small_answers_behind_a_full_window_are_counted_and_cut(api, non_reader):
    """Each fits HTTP/2's first window, which a connection has only once."""
    first = non_reader.call(INFER, _request(60_000))
    wait_until(lambda: non_reader.received.get(first, 0) > 60_000, 30, "the first is taken")
    numbers = []
    for n in range(20):
        numbers.append(non_reader.call(INFER, _request(32_000)))
        wait_until(lambda n=n: _held(api) > 32_000 * (n + 1), 30, "one more that waits")
    wait_until(lambda: all(number in non_reader.ended for number in numbers), 30, "the end of all")
    assert all(CANCELLED in non_reader.ended[number] for number in numbers)
    assert CANCELLED not in non_reader.ended[first]
    wait_until(lambda: _held(api) == 0, 30, "what was held")


def test_too_many_unread_answers_are_refused(triton, tmp_path):
    with RunningGrpcServer(triton, tmp_path / "own", OPEN, caller_buffered_bytes=MB) as server:
        with contextlib.closing(NonReader(server)) as non_reader:
            non_reader.call(INFER, _request(900_000))
            wait_until(lambda: _held(server) > 900_000, 30, "the answer")
            with pytest.raises(InferenceServerException, match="read the answers"):
                _infer(server, 200_000)  # it would be over the limit
            assert _infer(server, 4) == 4
            assert _infer(server, 200_000, "some") == 200_000  # another caller's
        wait_until(lambda: _held(server) == 0, 30, "a client that left holds nothing")


def test_a_client_that_reads_is_not_cut_off(api, caplog):
    caplog.set_level("INFO", "gateway")
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(api.address, options) as channel:
        infer = channel.unary_unary(INFER)
        metadata = tuple(api.headers().items())
        for size in (4, 70_000, 8 * MB, 4):
            response, call = infer.with_call(_request(size), metadata=metadata)
            assert len(response) > size
            assert call.code() is grpc.StatusCode.OK
            assert dict(call.trailing_metadata())["x-request-id"]
        time.sleep(SEND_TIMEOUT_S + 0.5)  # and finished calls are not checked again
        assert len(infer(_request(4), metadata=metadata)) > 4
    assert "is cut" not in caplog.text
    wait_until(lambda: _held(api) == 0, 30, "what was held")


def test_a_stream_whose_first_answer_is_not_read_leaves_nothing_behind(api, non_reader):
    """Its status waits behind the answer: gRPC kept both, and the gateway counted neither."""
    number = non_reader.call(STREAM, _request(48 * MB), is_last=False)
    wait_until(lambda: _held(api) > 48 * MB, 30, "the answer")
    wait_until(lambda: non_reader.received.get(number) == 65535, 30, "what there is room for")
    most = _resident()
    wait_until(lambda: number in non_reader.ended, 30, "the end")
    assert CANCELLED in non_reader.ended[number]
    wait_until(lambda: _held(api) == 0, 30, "what was held")
    wait_until(lambda: most - _resident() > 80 * MB, 30, "the answer's memory, gRPC's copy too")


def test_calls_that_were_cut_off_are_forgotten(api, capfd):
    """By gRPC too, and without an error message of its own."""

    def calls() -> int:
        gc.collect()
        return sum(1 for get_object in gc.get_objects() if type(get_object).__name__ == "RPCState")

    before = calls()
    for _ in range(4):
        with contextlib.closing(NonReader(api)) as non_reader:
            first = non_reader.call(INFER, _request(70_000))
            wait_until(
                lambda non_reader=non_reader, first=first: first in non_reader.ended, 30, "the end"
            )
    assert calls() < before + 4
    assert "Error" not in capfd.readouterr().err


def test_streams_that_are_not_read_leave_permits_to_others(triton, tmp_path):
    """Two streams of 20 messages once held most of 40 permits until the timeout."""
    with RunningGrpcServer(
        triton, tmp_path / "own", OPEN, send_timeout_s=20.0, max_inflight=40
    ) as server:
        replica = server.gateway.pool.replicas[0]
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(contextlib.closing(NonReader(server))) for _ in range(2)]
            numbers = [
                stream.call(STREAM, *[_request(400_000)] * 20, is_last=False) for stream in streams
            ]
            # 1 MiB of each stream waits, so reading stops: most messages are in flight.
            wait_until(lambda: _held(server) > 2 * MB, 30, "answers that wait for a reader")
            wait_until(lambda: replica.inflight == 0, 30, "the permits")
            _call_a_hundred_times(server)
            assert not any(
                number in stream.ended for stream, number in zip(streams, numbers, strict=True)
            )
        wait_until(lambda: replica.inflight == replica.aside == 0, 30, "the permits")
        wait_until(lambda: _held(server) == 0, 30, "what was held")


def _call_a_hundred_times(api) -> None:
    """As another tenant; each call is answered."""
    tensor = InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.array([1], np.float32))
    with InferenceServerClient(api.address) as client:
        for _ in range(100):
            client.infer("zeros", [tensor], headers=api.headers("some"), client_timeout=30)


@contextlib.asynccontextmanager
async def _wait_for_ever(caller_bounds, caller):
    await asyncio.Future()
    yield


def test_unfinished_messages_are_bounded_by_what_a_caller_may_hold(api, non_reader):
    """Each may be as large as the body limit: further ones wait at their sender."""
    settings = api.gateway.settings
    most = settings.caller_buffered_bytes // settings.body_limit_bytes
    assert most < MAX_ARRIVING
    announced = b"\0" + struct.pack(">I", settings.body_limit_bytes) + b"\x3a"
    for _ in range(most):
        non_reader.begin(INFER, announced)
    with grpc.insecure_channel(api.address) as channel:
        call = channel.unary_unary(INFER)
        mine, other = (tuple(api.headers(name).items()) for name in ("all", "some"))

        def is_late() -> bool:
            code = call.future(_request(4), metadata=mine, timeout=0.5).code()
            return code is grpc.StatusCode.DEADLINE_EXCEEDED

        wait_until(is_late, 30, "my messages wait")
        call(_request(4), metadata=other, timeout=30)
        non_reader.close()
        call(_request(4), metadata=mine, timeout=30)


def test_reflection_reads_a_few_streams_of_a_caller_at_a_time(api, non_reader, monkeypatch):
    """Its messages may be as large as any while they arrive; those that do not arrive time out."""
    monkeypatch.setattr("gateway.api.grpc.server.REFLECTION_S", 1.0)
    settings = api.gateway.settings
    most = settings.caller_buffered_bytes // settings.body_limit_bytes
    announced = b"\0" + struct.pack(">I", settings.body_limit_bytes) + b"\x3a"
    for _ in range(most):
        non_reader.begin(REFLECT, announced)
    question = non_reader.call(REFLECT, b"\x3a\0")  # the list of services
    time.sleep(0.5)
    assert not non_reader.ended and question not in non_reader.received
    wait_until(lambda: len(non_reader.ended) == most + 1, 30, "the others are given up")
    assert non_reader.received[question]


def test_uploads_that_are_not_read_stay_at_their_client(api, monkeypatch):
    """After some fast uploads each stream once took 64 MB, whether or not it was read."""
    options = [("grpc.max_send_message_length", -1)]
    metadata = tuple(api.headers().items())
    with grpc.insecure_channel(api.address, options) as channel:
        for _ in range(8):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(INFER)(bytes(30 * MB), metadata=metadata)
        monkeypatch.setattr(CallerBounds, "arriving", _wait_for_ever)  # for others' messages
        sent = [0] * 4

        def pieces(n: int):
            while True:
                sent[n] += 100_000
                yield bytes(100_000)

        calls = [channel.stream_unary(INFER).future(pieces(n), metadata=metadata) for n in range(4)]
        wait_until(lambda: all(sent), 30, "something of each")
        read = [0]

        def stuck() -> bool:
            time.sleep(0.3)
            read.append(sum(sent))
            return read[-1] == read[-2]

        wait_until(stuck, 30, "the clients are held up")
        for call in calls:
            call.cancel()
        assert max(sent) < 2 * MB
