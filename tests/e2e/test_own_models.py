"""Models that a user adds to the repository: served under /v2, cancelled, timed out, refused."""

import asyncio
import http.client
import json
import shutil
import time

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tritonclient import http as triton_http

from gateway.api.tasks.routes import TaskApi
from gateway.errors import InvalidRequest
from modelspec.parameters import ENDPOINT_PARAMETER, GOLDEN_PARAMETER, SHORT_BYTES_PARAMETER
from modelspec.pbtxt import parse, render
from tests.gateway.request_contexts import context_of
from tests.gateway.upstream.both_ways import both_ways
from tests.running import QUICK, launch, stop, wait_ready, wait_until

# Sleeps in small steps until INPUT0's first seconds are over or the caller has left, and counts the
# latter.
SLEEPER = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.cancelled = 0

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        seconds = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy().flat[0]
        if seconds < 0:
            raise RuntimeError("secret path /root/model.bin")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if request.is_cancelled():
                self.cancelled += 1
                break
            time.sleep(0.01)
        answer = np.array([self.cancelled], dtype=np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", answer)])
"""
CONFIG = """
backend: "python"
max_batch_size: 0
input { name: "INPUT0" data_type: TYPE_FP32 dims: 1 }
output { name: "OUTPUT0" data_type: TYPE_FP32 dims: 1 }
"""
# Of the sleeper with requests of one value that are short, by what it declares.
NAP = {"type": "array", "items": {"type": "number"}, "x-tensor": "INPUT0"}
NAPPER_ENDPOINT = {
    "purpose": "Sleep.",
    "request": {"type": "object", "properties": {"seconds": NAP}},
    "response": {
        "type": "object",
        "properties": {"cancelled": {"type": "number", "x-tensor": "OUTPUT0"}},
    },
    "example": {"seconds": [0]},
}
NAPPER_GOLDEN = {"request": {"seconds": [0]}, "expect": {"OUTPUT0": [0]}, "tolerance": 1e6}


def _napper_config() -> str:
    config = parse(CONFIG)
    config.input[0].dims[:] = [-1]
    for name, text in (
        (ENDPOINT_PARAMETER, json.dumps(NAPPER_ENDPOINT)),
        (GOLDEN_PARAMETER, json.dumps(NAPPER_GOLDEN)),
        (SHORT_BYTES_PARAMETER, "4"),
    ):
        config.parameters[name].string_value = text
    return render(config)


def _add_onnx(folder) -> None:
    """Add only an ONNX file: the backend completes the config from the graph."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"])],
        "g",
        [value("a", TensorProto.INT64, ["n", 2]), value("b", TensorProto.INT64, ["n", 2])],
        [value("sum", TensorProto.INT64, ["n", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (folder / "1").mkdir(parents=True)
    onnx.save(model, folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text('backend: "onnxruntime"\n')


@pytest.fixture(scope="module")
def own_stack(built, tmp_path_factory):
    home = tmp_path_factory.mktemp("own")
    shutil.copytree(built / "model_repository", home / "model_repository")
    for name, config in (("sleeper", CONFIG), ("napper", _napper_config())):
        folder = home / "model_repository" / name
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.py").write_text(SLEEPER)
        (folder / "config.pbtxt").write_text(config)
    _add_onnx(home / "model_repository" / "adder")
    running = launch(home, *QUICK, "sleeper", "napper", "adder")
    wait_ready(running)
    yield running
    assert stop(running) == 0


def _body(seconds: float, **parameters) -> bytes:
    tensor = {"name": "INPUT0", "shape": [1], "datatype": "FP32", "data": [seconds]}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()


def _sleep(stack, seconds: float, **parameters) -> httpx.Response:
    return stack.post("/v2/models/sleeper/infer", content=_body(seconds, **parameters))


def _inflight(stack) -> int:
    admin = f"http://127.0.0.1:{stack.admin_port}/admin/replicas"
    (replica,) = httpx.get(admin, headers=stack.headers, timeout=30).json()["replicas"]
    return replica["inflight"]


def _cancelled(stack) -> float:
    return _sleep(stack, 0).json()["outputs"][0]["data"][0]


def test_an_onnx_file_is_served_as_it_is(own_stack):
    with triton_http.InferenceServerClient(own_stack.url.removeprefix("http://")) as client:
        metadata = client.get_model_metadata("adder", headers=own_stack.headers)
        assert metadata["inputs"][0] == {"name": "a", "datatype": "INT64", "shape": [-1, 2]}
        tensors = []
        for name in ("a", "b"):
            tensors.append(triton_http.InferInput(name, [3, 2], "INT64"))
            tensors[-1].set_data_from_numpy(np.arange(6, dtype=np.int64).reshape(3, 2))
        result = client.infer("adder", tensors, headers=own_stack.headers)
    assert result.as_numpy("sum").tolist() == [[0, 2], [4, 6], [8, 10]]


def test_inputs_with_different_rows_are_refused(own_stack):
    tensors = [
        {"name": name, "shape": [rows, 2], "datatype": "INT64", "data": [0] * rows * 2}
        for name, rows in (("a", 1), ("b", 2))
    ]
    response = own_stack.post("/v2/models/adder/infer", json={"inputs": tensors})
    assert response.status_code == 400
    assert "different numbers of rows: [1, 2]" in response.json()["error"]


def _leave(stack, path: str, body: bytes) -> None:
    """Ask, and close the connection while it is under way."""
    connection = http.client.HTTPConnection("127.0.0.1", stack.gateway_port)
    connection.request("POST", path, body, stack.headers)
    wait_until(lambda: _inflight(stack) == 1, 30, "it is under way")
    time.sleep(0.3)
    connection.close()


def test_a_client_that_leaves_stops_the_work(own_stack):
    before = _cancelled(own_stack)
    _leave(own_stack, "/v2/models/sleeper/infer", _body(10))
    wait_until(lambda: _cancelled(own_stack) == before + 1, 30, "the cancel in Triton")


def _nap(stack, *seconds: float) -> float:
    """How often the napper was cancelled before."""
    response = stack.post("/v1/napper", json={"seconds": seconds})
    assert response.status_code == 200, response.text
    return response.json()["cancelled"]


def test_a_longer_request_to_a_model_with_short_ones_is_cancelled(own_stack):
    before = _nap(own_stack, 0)
    _leave(own_stack, "/v1/napper", json.dumps({"seconds": [20, 0]}).encode())
    wait_until(lambda: _nap(own_stack, 0) == before + 1, 60, "the cancel in Triton")


def test_a_short_request_is_finished_and_others_are_not_behind_it_for_long(own_stack):
    """Nobody tells Triton that the client left: it is what the model's declaration accepts."""
    before = _nap(own_stack, 0)
    _leave(own_stack, "/v1/napper", json.dumps({"seconds": [5]}).encode())
    assert _nap(own_stack, 0) == before


@pytest.fixture
async def ways(own_stack):
    """The task API of two gateways: of one with an HTTP upstream, and of one with gRPC alone."""
    async with both_ways(own_stack) as gateways:
        yield [TaskApi(gateway) for gateway in gateways]


async def _embed(api: TaskApi, text: str) -> bytes:
    messages = [{"type": "http.request", "body": json.dumps({"text": text}).encode()}]

    async def receive():
        return messages.pop() if messages else await asyncio.Future()

    scope = {"path": "/v1/text_embedding", "headers": []}
    scope["path_params"] = {"endpoint": "text_embedding"}
    return (await api.call(context_of(scope, receive, deadline_s=60))).body


async def test_a_text_has_the_same_vector_over_both_ways(ways, monkeypatch):
    """To the last bit, as far as it was not in one batch with a golden sample."""
    http = ways[0].gateway.pool.replicas[0].upstream.http_upstream
    taken = []
    infer_message = http.infer_message

    async def spied(request, *arguments):
        taken.append(await infer_message(request, *arguments))
        return taken[-1]

    monkeypatch.setattr(http, "infer_message", spied)
    texts = ["Where is my parcel?", "Wo ist mein Paket? ☃ 📦", "x" * 252, "x" * 253]
    for text in texts:
        for _ in range(10):
            over_http, over_grpc = [await _embed(api, text) for api in ways]
            if over_http == over_grpc:
                break
        assert over_http == over_grpc
    assert all(taken)
    assert len(taken) >= 3
    before = len(taken)
    await _embed(ways[0], texts[-1])  # four bytes for its length: 257
    assert len(taken) == before


async def test_what_the_model_refuses_is_the_same_over_both_ways(ways):
    errors = []
    for api in ways:
        with pytest.raises(InvalidRequest) as caught:
            await _embed(api, " ")
        errors.append(caught.value.args)
    assert errors[0] == errors[1]


def test_the_requests_own_timeout_is_a_deadline(own_stack):
    before = _cancelled(own_stack)
    response = _sleep(own_stack, 10, timeout=1_000_000)
    assert response.status_code == 504
    assert "did not answer in time" in response.json()["error"]
    wait_until(lambda: _cancelled(own_stack) == before + 1, 30, "the cancel in Triton")


def test_a_failing_model_reveals_no_internals(own_stack):
    response = _sleep(own_stack, -1)
    assert response.status_code == 502
    assert "the model failed" in response.json()["error"]
    assert "secret" not in response.text
    assert "/root" not in response.text


def test_models_without_an_endpoint_schema_are_not_listed(own_stack):
    names = [model["id"] for model in own_stack.get("/v1/models").json()["data"]]
    assert not {"sleeper", "adder"} & set(names)
    assert own_stack.post("/v1/sleeper", json={}).status_code == 404
