"""The gRPC API against a real Triton, with stock clients."""

import asyncio
import queue
import threading
import time

import grpc
import numpy as np
import orjson
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2, service_pb2_grpc
from tritonclient.grpc import aio as triton_aio
from tritonclient.utils import InferenceServerException

from gateway.api.grpc.server import SERVICE, GrpcServer
from tests.e2e.grpc_models import RunningGrpcServer, serving
from tests.running import wait_until

LIMIT_BYTES = 1 << 20


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("grpc")) as running:
        yield running


@pytest.fixture(scope="module")
def api(triton, tmp_path_factory):
    home = tmp_path_factory.mktemp("api")
    with RunningGrpcServer(triton, home, body_limit_bytes=LIMIT_BYTES, deadline_s=3.0) as running:
        yield running


@pytest.fixture(scope="module")
def client(api):
    with InferenceServerClient(api.address) as triton_client:
        yield triton_client


@pytest.fixture(scope="module")
def stub(api):
    with grpc.insecure_channel(api.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
async def aio(api):
    async with triton_aio.InferenceServerClient(api.address) as client:
        yield client


def _input(value, name: str = "x", dtype: str = "FP32") -> InferInput:
    array = np.array(value, np.object_ if dtype == "BYTES" else np.float32)
    tensor = InferInput(name, list(array.shape), dtype)
    tensor.set_data_from_numpy(array)
    return tensor


def _metadata(api, tenant: str = "all", *more):
    return (*api.headers(tenant).items(), *more)


def _cancelled(client, api) -> float:
    response = client.infer("sleeper", [_input([0])], headers=api.headers())
    return response.as_numpy("y").item()


def _answered(client, api) -> int:
    statistics = client.get_inference_statistics("echo", headers=api.headers()).model_stats
    return statistics[0].inference_stats.success.count


def _status(call) -> str:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status().removeprefix("StatusCode.")


def test_every_method_of_a_stock_client(client, api):
    headers = api.headers()
    assert client.is_server_live(headers=headers)
    assert client.is_server_ready(headers=headers)
    assert client.is_model_ready("echo", headers=headers)
    assert client.get_server_metadata(headers=headers).name == "triton"
    metadata = client.get_model_metadata("sleeper", "1", headers=headers)
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [1])]
    assert client.get_model_config("counter", headers=headers).config.name == "counter"
    client.infer("echo", [_input([1.5], "FP32")], headers=headers)
    wait_until(lambda: _answered(client, api), 30, "Triton counts the inference")


@pytest.mark.parametrize("values", [[], [1.5, -0.0, float("inf")], [0.5] * 100_000])
def test_tensors_come_back_as_they_went(client, api, values):
    response = client.infer("echo", [_input(values, "FP32")], headers=api.headers())
    assert response.as_numpy("FP32_back").tolist() == values


def test_text_and_several_tensors(client, api):
    tensors = [_input([b"", "Grüße".encode()], "STRING", "BYTES"), _input([2.0], "FP32")]
    response = client.infer("echo", tensors, request_id="mine", headers=api.headers())
    assert response.as_numpy("STRING_back").tolist() == [b"", "Grüße".encode()]
    assert response.as_numpy("FP32_back").tolist() == [2]
    assert response.get_response().id == "mine"


async def test_the_asyncio_client(aio, api):
    calls = [aio.infer("echo", [_input([n], "FP32")], headers=api.headers()) for n in range(50)]
    responses = await asyncio.gather(*calls)
    assert [response.as_numpy("FP32_back").item() for response in responses] == list(range(50))


def test_values_in_protobufs_own_fields(stub, api):
    request = service_pb2.ModelInferRequest(model_name="echo")
    for name, field, values in (
        ("INT8", "int_contents", [-128, 127]),
        ("STRING", "bytes_contents", [b"a", b""]),
        ("FP64", "fp64_contents", [0.5, float("nan")]),
    ):
        dtype = "BYTES" if name == "STRING" else name
        tensor = request.inputs.add(name=name, datatype=dtype, shape=[2])
        getattr(tensor.contents, field).extend(values)
    response = stub.ModelInfer(request, metadata=_metadata(api))
    raws = {
        output.name: raw
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    assert np.frombuffer(raws["INT8_back"], np.int8).tolist() == [-128, 127]
    assert raws["STRING_back"] == b"\1\0\0\0a\0\0\0\0"
    assert np.isnan(np.frombuffer(raws["FP64_back"])[1])


@pytest.mark.parametrize("authorization", [None, "Bearer nonsense", "Basic eDp5"])
def test_every_method_needs_an_identity(stub, authorization):
    metadata = (("authorization", authorization),) if authorization else ()
    for name, method in SERVICE.methods_by_name.items():
        request = method.input_type._concrete_class()
        if name == "ModelStreamInfer":
            call = stub.ModelStreamInfer(iter([request]), metadata=metadata)
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
        else:
            with pytest.raises(grpc.RpcError) as caught:
                getattr(stub, name)(request, metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, name
        trailing = dict(caught.value.trailing_metadata())
        assert trailing["tidegate-code"] == "unauthenticated"
        assert trailing["x-request-id"] in caught.value.details()


@pytest.mark.parametrize(
    ("tenant", "code"), [(None, "UNAUTHENTICATED"), ("all", "DEADLINE_EXCEEDED")]
)
def test_a_message_that_does_not_come(api, tenant, code):
    """Without an identity it is neither awaited nor read: it would be held in memory."""
    with grpc.insecure_channel(api.address) as channel:
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        ended = threading.Event()
        nothing = iter(ended.wait, True)
        asking = call.future(nothing, metadata=_metadata(api, tenant) if tenant else ())
        assert asking.code().name == code
        ended.set()


CLOSED = [
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
]


@pytest.mark.parametrize("name", CLOSED)
def test_methods_that_are_not_offered(stub, api, name):
    request = SERVICE.methods_by_name[name].input_type._concrete_class()
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, name)(request, metadata=_metadata(api))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert f"{name} is not offered" in caught.value.details()


def test_every_method_of_the_service_is_decided(stub):
    offered = {
        "ServerLive",
        "ServerReady",
        "ServerMetadata",
        "ModelReady",
        "ModelMetadata",
        "ModelConfig",
        "ModelStatistics",
        "ModelInfer",
        "ModelStreamInfer",
    }
    assert set(SERVICE.methods_by_name) == offered | set(CLOSED)


def test_an_unknown_method(api):
    with grpc.insecure_channel(api.address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/Nonsense")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", metadata=_metadata(api))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_forbidden_model_looks_like_an_unknown_one(client, api):
    """The same words for another tenant's model, an internal one, and one that does not exist."""
    some = api.headers("some")
    client.infer("echo", [_input([1], "FP32")], headers=some)
    texts = set()
    for name in ("sleeper", "hidden", "nonsense"):
        for call in (
            lambda name=name: client.infer(name, [_input([0])], headers=some),
            lambda name=name: client.get_model_metadata(name, headers=some),
            lambda name=name: client.get_model_config(name, headers=some),
            lambda name=name: client.get_inference_statistics(name, headers=some),
        ):
            with pytest.raises(InferenceServerException) as caught:
                call()
            assert caught.value.status() == "StatusCode.NOT_FOUND"
            texts.add(caught.value.message().partition(" (request")[0].replace(name, "*"))
        assert not client.is_model_ready(name, headers=some)
    assert len(texts) == 1
    names = {model.name for model in client.get_inference_statistics(headers=some).model_stats}
    assert names == {"echo", "tally"}


def test_a_read_only_caller(client, api):
    reader = api.headers("reader")
    assert client.get_model_metadata("echo", headers=reader).name == "echo"
    infer = lambda: client.infer("echo", [_input([1], "FP32")], headers=reader)  # noqa: E731
    assert _status(infer) == "PERMISSION_DENIED"


def test_the_firewall_refuses(client, stub, api):
    headers = api.headers()
    wrong = [
        ("sleeper", [_input([1, 2])]),
        ("sleeper", [_input([[1]])]),
        ("sleeper", [_input([1], "z")]),
        ("sleeper", [_input([b"1"], "x", "BYTES")]),
        ("sleeper", []),
        ("sleeper", [_input([1]), _input([1])]),
        ("counter", [_input([1])]),  # streams
    ]
    for model, tensors in wrong:
        call = lambda model=model, tensors=tensors: client.infer(model, tensors, headers=headers)  # noqa: E731
        assert _status(call) == "INVALID_ARGUMENT", tensors
    version = lambda: client.infer("sleeper", [_input([0])], "9", headers=headers)  # noqa: E731
    assert _status(version) == "NOT_FOUND"
    shared = InferInput("x", [1], "FP32")
    shared.set_shared_memory("region", 4)
    memory = lambda: client.infer("sleeper", [shared], headers=headers)  # noqa: E731
    assert _status(memory) == "INVALID_ARGUMENT"


def test_bytes_that_are_not_a_message(api):
    with grpc.insecure_channel(api.address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for data in (b"\xff", b"\x3a\xff\xff\xff\xff\xff\xff", b"\x0a\x05ab", b"\x42\x01a", b""):
            with pytest.raises(grpc.RpcError) as caught:
                call(data, metadata=_metadata(api))
            assert caught.value.code() in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.NOT_FOUND,
            )


def test_a_message_over_the_limit(client, api):
    call = lambda: client.infer(  # noqa: E731
        "echo", [_input([0.5] * (LIMIT_BYTES // 4), "FP32")], headers=api.headers()
    )
    assert _status(call) == "RESOURCE_EXHAUSTED"


def test_a_compressed_message_is_refused(client, api):
    """It could be a thousand times as large in memory."""
    call = lambda: client.infer(  # noqa: E731
        "echo",
        [_input([0.0] * 10_000, "FP32")],
        headers=api.headers(),
        compression_algorithm="gzip",
    )
    assert _status(call) == "UNIMPLEMENTED"


def test_limits_and_their_headers(stub, api):
    request = service_pb2.ModelInferRequest(model_name="sleeper")
    request.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(0)
    metadata = _metadata(api, "slow", ("x-request-id", "mine"))
    for remaining in (1, 0):
        _, call = stub.ModelInfer.with_call(request, metadata=metadata)
        limits = dict(call.initial_metadata())
        assert limits["ratelimit"].startswith('"tenant-requests-60s')
        assert f";r={remaining};" in limits["ratelimit"]
        assert dict(call.trailing_metadata())["x-request-id"] == "mine"
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = dict(caught.value.trailing_metadata())
    assert trailing["tidegate-code"] == "quota_exceeded"
    assert 20 <= int(trailing["retry-after"]) <= 30
    assert int(trailing["grpc-retry-pushback-ms"]) == int(trailing["retry-after"]) * 1000
    assert ";r=0;" in trailing["ratelimit"]


async def test_a_client_that_leaves_stops_the_work(aio, client, api):
    before = _cancelled(client, api)
    asking = asyncio.create_task(aio.infer("sleeper", [_input([2.5])], headers=api.headers()))
    (replica,) = api.gateway.pool.replicas
    await asyncio.to_thread(wait_until, lambda: replica.inflight == 1, 30, "it is under way")
    await asyncio.sleep(0.2)
    asking.cancel()
    await asyncio.to_thread(
        wait_until, lambda: _cancelled(client, api) == before + 1, 30, "the cancel in Triton"
    )
    await asyncio.to_thread(wait_until, lambda: replica.inflight == 0, 30, "its permit is back")


@pytest.mark.parametrize("how", ["grpc", "parameter", "gateway"])
def test_deadlines(client, api, how):
    before = _cancelled(client, api)
    options = {"grpc": {"client_timeout": 1.0}, "parameter": {"timeout": 1_000_000}, "gateway": {}}
    # The gateway's deadline is 3 s: the client's own comes before it and before the response.
    sleep = [_input([9 if how == "gateway" else 2])]
    call = lambda: client.infer("sleeper", sleep, headers=api.headers(), **options[how])  # noqa: E731
    assert _status(call) == "DEADLINE_EXCEEDED"
    wait_until(lambda: _cancelled(client, api) == before + 1, 30, "the cancel in Triton")


def test_a_failing_model_reveals_no_internals(client, api):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("sleeper", [_input([-1])], headers=api.headers())
    assert caught.value.status() == "StatusCode.INTERNAL"
    assert "the model failed" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_sequences_of_two_tenants_with_one_id(client, api):
    ids = {}
    for step in range(3):
        for tenant in ("all", "some"):
            response = client.infer(
                "tally",
                [_input([[1 if tenant == "all" else 10]])],
                sequence_id=42,
                sequence_start=step == 0,
                sequence_end=step == 2,
                headers=api.headers(tenant),
            )
            assert response.as_numpy("y").item() == (step + 1) * (1 if tenant == "all" else 10)
            ids.setdefault(tenant, set()).add(response.as_numpy("id").item())
    assert all(len(tenant_ids) == 1 for tenant_ids in ids.values())
    assert len({42}.union(*ids.values())) == 3


class Streaming:
    """A stock streaming client and the results it got."""

    def __init__(self, api, tenant: str = "all", **options) -> None:
        self.answers: queue.Queue = queue.Queue()
        self.client = InferenceServerClient(api.address)
        self.client.start_stream(
            lambda result, error: self.answers.put(error or result),
            headers={**api.headers(tenant), **options},
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.client.close()

    def send(self, model: str, value, **options) -> None:
        self.client.async_stream_infer(model, [_input(value)], **options)

    def next(self):
        return self.answers.get(timeout=30)


def test_a_decoupled_model_streams(api):
    with Streaming(api) as stream:
        stream.send("counter", [4], request_id="mine", enable_empty_final_response=True)
        responses = [stream.next() for _ in range(5)]
    assert [response.as_numpy("y").item() for response in responses[:4]] == [0, 1, 2, 3]
    last = responses[4].get_response()
    assert last.parameters["triton_final_response"].bool_param
    assert last.id == "mine"


def test_one_stream_serves_several_models(api):
    with Streaming(api) as stream:
        stream.send("counter", [2])
        assert [stream.next().as_numpy("y").item() for _ in range(2)] == [0, 1]
        for step in range(3):
            stream.send("tally", [[2]], sequence_id="text", sequence_start=step == 0)
            assert stream.next().as_numpy("y").item() == 2 * (step + 1)


async def test_streaming_with_the_asyncio_client(aio, api):
    async def requests():
        for n in (2, 3):
            yield {"model_name": "counter", "inputs": [_input([n])]}

    values = []
    async for result, error in aio.stream_infer(requests(), headers=api.headers()):
        assert error is None
        values.append(result.as_numpy("y").item())
    assert values == [0, 1, 0, 1, 2]


def test_a_refused_message_does_not_end_the_stream(api):
    with Streaming(api) as stream:
        for model, value in (("nonsense", [1]), ("counter", [1, 2]), ("counter", [-1])):
            stream.send(model, value)
            error = stream.next()
            assert isinstance(error, InferenceServerException)
            assert "secret" not in str(error)
        stream.send("counter", [1])
        assert stream.next().as_numpy("y").item() == 0


def test_a_stream_with_grpc_statuses_is_ended_by_an_error(api):
    for model, value, status in (
        ("nonsense", [1], "NOT_FOUND"),
        ("counter", [1, 2], "INVALID_ARGUMENT"),
        ("counter", [-1], "INTERNAL"),
    ):
        with Streaming(api, triton_grpc_error="true") as stream:
            stream.send(model, value)
            error = stream.next()
            assert error.status() == f"StatusCode.{status}"
            assert "secret" not in str(error)


def test_limits_count_each_message_of_a_stream(triton, tmp_path):
    with RunningGrpcServer(triton, tmp_path / "own") as server, Streaming(server, "slow") as stream:
        for _ in range(3):
            stream.send("counter", [1])
        responses = [stream.next() for _ in range(3)]
        refused = [a for a in responses if isinstance(a, InferenceServerException)]
        assert len(refused) == 1
        assert "quota_exceeded" in str(refused[0])


def test_a_stream_that_is_cancelled_ends_in_triton(client, api):
    with Streaming(api) as stream:
        stream.send("counter", [0])
        before = stream.next().as_numpy("y").item()
        stream.send("counter", [1000])
        assert stream.next().as_numpy("y").item() == 0
        stream.client.stop_stream(cancel_requests=True)
    with Streaming(api) as stream:
        stream.send("counter", [0])
        assert stream.next().as_numpy("y").item() == before + 1
    wait_until(lambda: api.gateway.pool.permit().inflight == 0, 30, "the permits come back")


def test_a_stream_on_which_nothing_moves_is_ended(api):
    with Streaming(api) as stream:
        stream.send("counter", [1])
        stream.next()
        error = stream.next()
        assert error.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_a_stream_may_be_longer_than_the_deadline(api):
    with Streaming(api) as stream:
        stream.send("counter", [200])
        assert [stream.next().as_numpy("y").item() for _ in range(200)] == list(range(200))


def test_a_slow_reader_slows_the_model_down(stub, api):
    """Unread answers fill neither the gateway's memory nor Triton's."""
    message = service_pb2.ModelInferRequest(model_name="echo")
    message.inputs.add(name="FP32", datatype="FP32", shape=[200_000])
    message.raw_input_contents.append(bytes(800_000))
    sent = []

    def requests():
        for n in range(400):
            sent.append(n)
            yield message

    call = stub.ModelStreamInfer(requests(), metadata=_metadata(api))
    next(call)
    read = [0]

    def stuck() -> bool:
        time.sleep(0.7)
        read.append(len(sent))
        return read[-1] == read[-2]

    wait_until(stuck, 30, "the client is held up")
    assert len(sent) < 200  # WINDOW, plus what HTTP/2 has in flight
    call.cancel()


def test_health_needs_no_key(api):
    with grpc.insecure_channel(api.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == b"\x08\x01"
        assert check(b"\n\x1dinference.GRPCInferenceService"[:0]) == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\n\x01x")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_every_decision_is_in_the_audit_log(triton, tmp_path):
    with RunningGrpcServer(triton, tmp_path / "own") as server:
        with InferenceServerClient(server.address) as client:
            client.infer("echo", [_input([1], "FP32")], headers=server.headers())
            _status(lambda: client.infer("sleeper", [_input([0])], headers=server.headers("some")))
            _status(lambda: client.is_server_live())
        with Streaming(server) as stream:
            stream.send("counter", [1])
            stream.next()
    lines = [orjson.loads(line) for line in server.audit_log.read_bytes().splitlines()]
    fields = [(e["tenant"], e["action"], e["model"], e["decision"], e["status"]) for e in lines]
    assert fields == [
        ("all", "infer", "echo", "allow", 200),
        ("some", "infer", "sleeper", "deny", 404),
        ("", "", "", "deny", 401),
        ("all", "infer", "counter", "allow", 200),
    ]


async def test_requests_in_flight_may_finish_when_the_server_stops(triton, tmp_path):
    with RunningGrpcServer(triton, tmp_path / "own") as server:
        async with triton_aio.InferenceServerClient(server.address) as client:
            asking = asyncio.create_task(
                client.infer("sleeper", [_input([1.5])], headers=server.headers())
            )
            (replica,) = server.gateway.pool.replicas
            await asyncio.to_thread(wait_until, lambda: replica.inflight == 1, 30, "it is there")
            await asyncio.to_thread(server.run, server.api.stop(20))
            assert (await asking).as_numpy("y") is not None
            with pytest.raises(InferenceServerException):
                await client.infer("sleeper", [_input([0])], headers=server.headers())


def test_every_worker_serves_the_same_port(triton, tmp_path):
    with RunningGrpcServer(triton, tmp_path / "own") as server:
        second = GrpcServer(server.gateway, server.port)
        assert server.run(second.start()) == server.port
        server.run(server.api.stop(1))
        with InferenceServerClient(server.address) as client:
            assert client.is_server_live(headers=server.headers())
        server.run(second.stop(1))
