"""A token limit is settled with the model's own count, whichever API was used."""

import asyncio
import collections
import json
import queue
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from tritonclient.grpc import (
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
    service_pb2,
    service_pb2_grpc,
)
from tritonclient.utils import InferenceServerException

from gateway.api.v2.generate import GenerateApi
from gateway.api.v2.routes import V2Api
from gateway.errors import DeadlineExceeded, InvalidRequest, NoCapacity
from gateway.limits.limit import Subject, bucket_of
from gateway.policy.principal import Grant, Principal
from gateway.upstream.server import Upstream
from tests.e2e.grpc_models import HEAD, RunningGrpcServer, serving
from tests.echoing import MODELS as ECHO
from tests.gateway.request_contexts import context_of
from tests.running import wait_until

# Each row's x is its number of tokens; a negative x is an error.
COUNTED = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        if x.min() < 0:
            raise RuntimeError("told to fail")
        return pb_utils.InferenceResponse([
            pb_utils.Tensor("y", x), pb_utils.Tensor("token_count", x.astype(np.int32))])
"""
SLEEP = """__import__("time").sleep(2.0)
        if x.min()"""
# Three answers; each counts a third of x.
PIECES = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            sender = request.get_response_sender()
            for _ in range(3):
                sender.send(pb_utils.InferenceResponse([
                    pb_utils.Tensor("y", x),
                    pb_utils.Tensor("token_count", (x / 3).astype(np.int32))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
output { name: "token_count" data_type: TYPE_INT32 dims: 1 }
"""
MODELS = {
    "counted": (COUNTED, "max_batch_size: 8" + TENSORS),
    "slow": (COUNTED.replace("if x.min()", SLEEP), "max_batch_size: 8" + TENSORS),
    "pieces": (
        PIECES,
        "max_batch_size: 0 model_transaction_policy { decoupled: true }" + TENSORS,
    ),
    "echo_llm": (
        (ECHO / "echo_llm" / "model.py").read_text(),
        (ECHO / "echo_llm" / "config.pbtxt").read_text().replace(HEAD, ""),
    ),
}
# So slow that nothing is refilled while a test runs.
POLICY = """
[tenants.all]
models = ["*"]

[[limits]]
scope = "model"
kind = "tokens"
amount = 100000
window_s = 31622400
tenants = ["all"]

[[limits]]
scope = "model"
kind = "concurrency"
amount = 50
"""


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("tokens"), MODELS) as running:
        yield running


@pytest.fixture(scope="module")
def api(triton, tmp_path_factory):
    with RunningGrpcServer(triton, tmp_path_factory.mktemp("api"), POLICY) as running:
        yield running


@pytest.fixture
def spent(api):
    """``spent(model)``: tokens charged since the test began."""
    principal = Principal("k", "k", Grant(tenant="all"))
    limiter = api.gateway.access_control.limiter

    def used(model: str) -> float:
        limits = api.gateway.access_control.policy.current.access.limits(principal, model)
        (limit,) = (entry for entry in limits if entry.kind == "tokens")
        bucket = bucket_of(limit, Subject("all", "k", model))
        return (limiter.local._tats.get(bucket, 0) - time.monotonic()) * limit.rate

    before = {model: max(0.0, used(model)) for model in MODELS}
    yield lambda model: round(used(model) - before[model], 1)
    # A client whose deadline has passed does not wait for the gateway to notice.
    wait_until(lambda: not limiter.local._held, 30, "every slot is released")


@pytest.fixture
def client(api):
    with InferenceServerClient(api.address) as triton_client:
        yield triton_client


class Streaming:
    """A stock streaming client and the results it got."""

    def __init__(self, api) -> None:
        self.answers: queue.Queue = queue.Queue()
        self.client = InferenceServerClient(api.address)
        self.client.start_stream(
            lambda result, error: self.answers.put(error or result), headers=api.headers()
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.client.close()

    def send(self, model, inputs, **options):
        self.client.async_stream_infer(model, inputs, **options)

    def next(self):
        return self.answers.get(timeout=20)


def _x(*values, rows: bool = True) -> list[InferInput]:
    array = np.array(values, np.float32).reshape((-1, 1) if rows else (-1,))
    tensor = InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    return [tensor]


def _call_handler(api, handler, model, body):
    """The body that an HTTP API's handler sends."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def ask():
        async def receive():
            return messages.pop() if messages else await asyncio.Future()

        access = api.gateway.access_control.policy.current.access
        scope = {"path": "/v2/x", "headers": [], "path_params": {"model": model}}
        context = context_of(scope, receive, access=access)
        context.principal = Principal("k", "k", Grant(tenant="all"))
        sent = []

        async def send(message):
            sent.append(message.get("body", b""))

        # As in ``Endpoint``: the admission ends with the response.
        try:
            await (await handler(context)).send(send)
        except BaseException as error:
            await context.leave(error)
            raise
        await context.leave(None)
        return b"".join(sent)

    return api.run(ask())


def _v2(*values, **more):
    tensor = {"name": "x", "shape": [len(values), 1], "datatype": "FP32", "data": values}
    return {"inputs": [tensor], **more}


def test_grpc_unary(api, client, spent):
    response = client.infer("counted", _x(600, 100), headers=api.headers())
    assert response.as_numpy("token_count").tolist() == [[600], [100]]
    assert spent("counted") == 700


@pytest.mark.parametrize("outputs", [["y"], ["token_count"], ["token_count", "y"]])
def test_grpc_unary_of_some_outputs(api, client, spent, outputs):
    """A caller that does not request the count still pays."""
    requested = [InferRequestedOutput(name) for name in outputs]
    response = client.infer("counted", _x(600, 100), outputs=requested, headers=api.headers())
    assert sorted(output.name for output in response.get_response().outputs) == sorted(outputs)
    if "y" in outputs:
        assert response.as_numpy("y").tolist() == [[600], [100]]
    assert spent("counted") == 700


def test_a_count_cannot_be_disguised(api, client, spent):
    requested = [InferRequestedOutput("token_count", class_count=1)]
    with pytest.raises(InferenceServerException, match="without classification"):
        client.infer("counted", _x(600), outputs=requested, headers=api.headers())
    with pytest.raises(InvalidRequest, match="without classification"):
        output = {"name": "token_count", "parameters": {"classification": 1}}
        _call_handler(api, V2Api(api.gateway).infer, "counted", _v2(600, outputs=[output]))
    assert spent("counted") == 0


def test_v2_infer(api, spent):
    infer = V2Api(api.gateway).infer
    whole = json.loads(_call_handler(api, infer, "counted", _v2(5, 6, 7)))
    assert [output["name"] for output in whole["outputs"]] == ["y", "token_count"]
    assert spent("counted") == 18
    some = json.loads(_call_handler(api, infer, "counted", _v2(500, outputs=[{"name": "y"}])))
    assert [output["name"] for output in some["outputs"]] == ["y"]
    assert spent("counted") == 518


def test_v2_generate(api, spent):
    _call_handler(api, GenerateApi(api.gateway).generate, "counted", {"x": 41})
    assert spent("counted") == 41
    _call_handler(api, GenerateApi(api.gateway).generate_stream, "pieces", {"x": 300})
    assert spent("pieces") == 300


def test_a_request_that_fails_costs_nothing(api, client, spent):
    with pytest.raises(InferenceServerException, match="the model failed"):
        client.infer("counted", _x(-1), headers=api.headers())
    with Streaming(api) as stream:
        for _ in range(3):
            stream.send("counted", _x(-1))
            assert isinstance(stream.next(), InferenceServerException)
    assert spent("counted") == 0


def test_a_grpc_stream_is_settled_message_by_message(api, spent):
    expected = [InferRequestedOutput("y")]
    with Streaming(api) as stream:
        for x in (10, 200, 3000):
            stream.send("counted", _x(x), outputs=expected)
            response = stream.next()
            assert [output.name for output in response.get_response().outputs] == ["y"]
            assert response.as_numpy("y").tolist() == [[x]]
        # The first message's reservation and slot are held to the end of the stream.
        wait_until(lambda: 3200 < spent("counted") < 3300, 30, "all but the first are settled")
    wait_until(lambda: spent("counted") == 3210, 30, "the first one is settled")


@pytest.mark.parametrize("wants_final", [False, True])
def test_a_grpc_stream_of_a_decoupled_model(api, spent, wants_final):
    with Streaming(api) as stream:
        for x in (30, 600, 900):
            stream.send("pieces", _x(x, rows=False), enable_empty_final_response=wants_final)
            values = [stream.next() for _ in range(3 + wants_final)]
            assert [value.as_numpy("token_count").tolist() for value in values[:3]] == [[x / 3]] * 3
        wait_until(lambda: 1500 < spent("pieces") < 1600, 30, "all but the first are settled")
        assert stream.answers.empty()
    wait_until(lambda: spent("pieces") == 1530, 30, "the first one is settled")


def test_a_stream_that_is_left_pays_for_what_it_got(api, spent):
    """``pieces`` never waits, so the slow echo model is used."""
    with Streaming(api) as stream:
        stream.send("echo_llm", _text("[repeat 50] [delay 0.05] a", stream=True))
        results = [stream.next() for _ in range(3)]
        assert [name for result in results for name in _names(result)] == ["text_output"] * 3
        stream.client.stop_stream(cancel_requests=True)
    wait_until(lambda: 0 < spent("echo_llm") < 20, 30, "what was said until then is settled")


def _names(response):
    return [output.name for output in response.get_response().outputs]


def _text(text: str, **flags) -> list[InferInput]:
    tensors = []
    for name, value in {"text_input": text.encode(), **flags}.items():
        dtype = "BYTES" if name == "text_input" else "BOOL"
        tensors.append(InferInput(name, [1], dtype))
        numpy_dtype = object if dtype == "BYTES" else bool
        tensors[-1].set_data_from_numpy(np.array([value], dtype=numpy_dtype))
    return tensors


def test_a_language_model_pays_under_v2_too(api, spent):
    """V2 does not bypass the limit of the OpenAI routes: 5 words in and 3 out, then 5 and 1."""
    body = {"text_input": "[repeat 3] [delay 0] word", "stream": True}
    events = _call_handler(api, GenerateApi(api.gateway).generate_stream, "echo_llm", body)
    events = [json.loads(part[6:]) for part in events.decode().split("\n\n") if part]
    assert [sorted(event) for event in events] == [
        ["model_name", "model_version", "text_output"]
    ] * 3
    assert spent("echo_llm") == 5 + 3
    _call_handler(
        api, GenerateApi(api.gateway).generate, "echo_llm", {"text_input": "[x 1] [y 2] word"}
    )
    assert spent("echo_llm") == 5 + 3 + 5 + 1
    for hidden in ("return_num_output_tokens", "return_num_input_tokens"):
        with pytest.raises(InvalidRequest, match="leave"):
            refused = {"text_input": "word", hidden: False}
            _call_handler(api, GenerateApi(api.gateway).generate, "echo_llm", refused)
    with Streaming(api) as stream:
        stream.send("echo_llm", _text("word", return_num_output_tokens=False))
        assert "leave" in str(stream.next())
        stream.send("echo_llm", _text("word", return_num_output_tokens=True))
        assert _names(stream.next()) == ["text_output", "num_output_tokens"]
    wait_until(lambda: spent("echo_llm") == 14 + 1 + 1, 30, "settled")


def test_values_in_protobufs_own_fields(api, spent):
    request = service_pb2.ModelInferRequest(model_name="echo_llm")
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"a b")
    tensor = request.inputs.add(name="stream", datatype="BOOL", shape=[1])
    tensor.contents.bool_contents.append(True)
    with grpc.insecure_channel(api.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        responses = list(stub.ModelStreamInfer(iter([request]), metadata=[*api.headers().items()]))
    assert [len(response.infer_response.outputs) for response in responses] == [1, 1]
    assert spent("echo_llm") == 2 + 2


def test_where_no_limit_binds_the_answers_are_passed_on_unread(triton, tmp_path, monkeypatch):
    def never(*arguments):
        raise AssertionError("an answer was read")

    monkeypatch.setattr("gateway.api.grpc.response.ResponseParts.__init__", never)
    with RunningGrpcServer(triton, tmp_path / "own", '[tenants.all]\nmodels = ["*"]\n') as free:
        with InferenceServerClient(free.address) as client:
            response = client.infer("counted", _x(600), headers=free.headers())
        assert response.as_numpy("token_count").tolist() == [[600]]
        with Streaming(free) as stream:
            stream.send("pieces", _x(30, rows=False))
            assert [stream.next().as_numpy("y").item() for _ in range(3)] == [30] * 3


def test_work_that_its_own_deadline_ended_is_not_free(api, client, spent):
    """The model worked anyway: it costs what was reserved, at every API."""
    body = _v2(*range(1, 9), parameters={"timeout": 1_000_000})
    reserved = len(json.dumps(body).encode()) / 4
    with pytest.raises(DeadlineExceeded):
        _call_handler(api, V2Api(api.gateway).infer, "slow", body)
    assert spent("slow") == pytest.approx(reserved, abs=0.5)  # the bucket drains over time
    body = {"x": 7, "parameters": {"timeout": 1_000_000}}
    with pytest.raises(DeadlineExceeded):
        _call_handler(api, GenerateApi(api.gateway).generate, "slow", body)
    generated = len(json.dumps(body).encode()) / 4
    assert spent("slow") == pytest.approx(reserved + generated, abs=0.5)
    before = spent("slow")
    with pytest.raises(InferenceServerException) as ended:
        client.infer("slow", _x(5), headers=api.headers(), client_timeout=1.0)
    assert ended.value.status() == "StatusCode.DEADLINE_EXCEEDED"  # the client's, or the gateway's
    held = api.gateway.access_control.limiter.local._held
    wait_until(lambda: not held, 30, "the gateway has noticed")
    assert spent("slow") > before + 5  # the reservation


def test_calls_that_end_at_any_stage_release_their_slots(api, spent):
    """Deadlines from zero to longer than an answer takes: each ends a different step of the call.
    ``spent`` checks that the slots are free."""
    ended = collections.Counter()

    def call(number):
        with InferenceServerClient(api.address) as client:
            for step in range(number, 120, 4):
                try:
                    client.infer(
                        "counted", _x(1), headers=api.headers(), client_timeout=0.0005 * (step + 1)
                    )
                    ended["answered"] += 1
                except InferenceServerException as error:
                    ended[error.status()] += 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))
    assert set(ended) <= {"answered", "StatusCode.DEADLINE_EXCEEDED"}
    assert ended["StatusCode.DEADLINE_EXCEEDED"] > 0
    pool = api.gateway.pool
    wait_until(
        lambda: not any(replica.inflight for replica in pool.replicas), 30, "every permit is back"
    )


def test_deadlines_amid_answers_leave_triton_alive(triton):
    """Triton 2.51 dies of a cancel that meets an answer: of these it did in the first second, when
    they were cancelled at once."""

    async def check():
        upstream = Upstream(triton.control.address, triton.options.work_dir / "triton.key")
        ended = collections.Counter()

        async def calls(worker):
            for call in range(400):
                message = service_pb2.ModelInferRequest(model_name="counted")
                message.inputs.add(name="x", datatype="FP32", shape=[1, 1])
                message.raw_input_contents.append(np.float32([[1]]).tobytes())
                try:
                    await upstream.infer(message, 0.0003 * (1 + (call + worker) % 20))
                    ended["answered"] += 1
                except DeadlineExceeded:
                    ended["late"] += 1

        await asyncio.gather(*map(calls, range(8)))
        await upstream.close()
        return ended

    ended = asyncio.run(check())
    assert set(ended) == {"answered", "late"}
    assert triton.is_alive()


def test_work_that_never_reached_the_model_is_free(api, spent):
    pool = api.gateway.pool
    most, pool._max_inflight = pool._max_inflight, 0
    try:
        with pytest.raises(NoCapacity):
            _call_handler(api, V2Api(api.gateway).infer, "slow", _v2(5))
    finally:
        pool._max_inflight = most
    assert spent("slow") == 0
