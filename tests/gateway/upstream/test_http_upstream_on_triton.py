"""The HTTP upstream against a real Triton: each response is compared with that of gRPC."""

import asyncio
import json
import shutil

import numpy as np
import orjson
import pytest

from gateway.api.v2.routes import V2Api
from gateway.errors import GatewayError
from gateway.render import error_reply
from modelspec.dtypes import NUMERIC_TYPES
from tests.gateway.request_contexts import context_of
from tests.gateway.upstream.both_ways import both_ways
from tests.running import ROOT, launch, stop, wait_ready

DTYPES = sorted(set(NUMERIC_TYPES) - {"FP16"})
EVERYTHING = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([
            pb_utils.Tensor(tensor.name().replace("in_", "out_"), tensor.as_numpy())
            for tensor in request.inputs()]) for request in requests]
"""
MOODY = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        seconds = pb_utils.get_input_tensor_by_name(request, "x").as_numpy().item()
        if seconds == -1:
            raise RuntimeError("secret path /root/model.bin")
        if seconds < 0:
            code = getattr(pb_utils.TritonError, ("INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED",
                "NOT_FOUND", "ALREADY_EXISTS", "INTERNAL", "UNKNOWN")[int(-seconds) - 2])
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("secret /root", code))
        time.sleep(seconds)
        values = np.array([seconds, np.nan if seconds == 0.125 else 1e-7], dtype=np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", values)])
"""
NOT_CANCELLABLE = 'parameters { key: "tidegate.cancellable" value { string_value: "false" } }\n'


def _add(home, name: str, code: str, tensors: str) -> None:
    folder = home / "model_repository" / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(code)
    head = 'backend: "python"\nmax_batch_size: 0\n'
    (folder / "config.pbtxt").write_text(head + tensors + NOT_CANCELLABLE)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    home = tmp_path_factory.mktemp("http_upstream")
    models = home / "model_repository"
    shutil.copytree(ROOT / "model_repository" / "identity_fp32", models / "identity_fp32")
    tensors = "".join(
        f'input {{ name: "in_{t}" data_type: TYPE_{t} dims: -1 optional: true }}\n'
        f'output {{ name: "out_{t}" data_type: TYPE_{t} dims: -1 }}\n'
        for t in DTYPES
    )
    _add(home, "everything", EVERYTHING, tensors)
    moody = 'input { name: "x" data_type: TYPE_FP32 dims: 1 }\n'
    _add(home, "moody", MOODY, moody + 'output { name: "y" data_type: TYPE_FP32 dims: 2 }\n')
    running = launch(home, "identity_fp32", "everything", "moody")
    wait_ready(running, 60)
    yield running
    assert stop(running) == 0


@pytest.fixture
async def apis(served):
    """The V2 API of two gateways: one with an HTTP upstream, one that uses gRPC only."""
    async with both_ways(served) as gateways:
        assert gateways[0].catalogue.model("identity_fp32").uses_http_upstream
        yield [V2Api(gateway) for gateway in gateways]


async def _infer(api: V2Api, model: str, inputs, deadline_s: float = 10, **document):
    """(status, JSON, binary tail) of the response, which may be an error."""
    messages = [
        {"type": "http.request", "body": json.dumps({"inputs": inputs, **document}).encode()}
    ]

    async def receive():
        return messages.pop() if messages else await asyncio.Future()

    scope = {"path": "/v2/models/x/infer", "headers": [], "path_params": {"model": model}}
    try:
        reply = await api.infer(context_of(scope, receive, deadline_s=deadline_s))
    except GatewayError as error:
        reply = error_reply(error, "/v2/", "id")
    lengths = dict(reply.headers).get(b"inference-header-content-length")
    length = int(lengths) if lengths else len(reply.body)
    return reply.status, orjson.loads(reply.body[:length]), reply.body[length:]


def _tensor(name: str, dtype: str, data) -> dict:
    return {"name": name, "shape": [len(data)], "datatype": dtype, "data": data}


def _values(dtype: str) -> list:
    dtype_of = np.dtype(NUMERIC_TYPES[dtype])
    if dtype == "BOOL":
        return [True, False]
    if dtype_of.kind == "f":
        limits = np.finfo(dtype_of)
        return [0.0, -0.0, 0.1, -1e-7, 1 / 3, float(limits.max), float(limits.tiny), 16777217]
    return [int(np.iinfo(dtype_of).min), 0, 7, int(np.iinfo(dtype_of).max)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("binary", [False, True])
async def test_every_datatype(apis, dtype, binary):
    options = {"id": 'mine "☃', "outputs": [{"name": f"out_{dtype}"}]}
    options["parameters"] = {"binary_data_output": binary, "priority": 1}
    inputs = [_tensor(f"in_{dtype}", dtype, _values(dtype))]
    (status, actual, tail), (_, expected, expected_tail) = [
        await _infer(api, "everything", inputs, **options) for api in apis
    ]
    assert status == 200
    for document in (actual, expected):
        for output in document["outputs"]:  # a number may be written in another way
            output["data"] = np.array(output.get("data", []), NUMERIC_TYPES[dtype]).tobytes()
    assert (actual, tail) == (expected, expected_tail)
    assert bool(tail) == binary


async def test_no_element_and_many(apis):
    for count in (0, 100_000):
        inputs = [
            {"name": "INPUT0", "shape": [1, count], "datatype": "FP32", "data": [1.5] * count}
        ]
        actual, expected = [await _infer(api, "identity_fp32", inputs) for api in apis]
        assert actual == expected
        assert actual[0] == 200
        assert len(actual[1]["outputs"][0]["data"]) == count


@pytest.mark.parametrize("mood", [0.125, *range(-8, 0)])
async def test_what_goes_wrong_in_the_model(apis, mood):
    inputs = [_tensor("x", "FP32", [mood])]
    actual, expected = [await _infer(api, "moody", inputs) for api in apis]
    assert actual == expected
    assert actual[0] >= 400
    assert "secret" not in str(actual)


@pytest.mark.parametrize(
    "inputs",
    [
        [_tensor("x", "FP32", [1, 2])],
        [_tensor("x", "INT32", [1])],
        [_tensor("z", "FP32", [1])],
        [],
        [{**_tensor("x", "FP32", [1]), "parameters": {"shared_memory_region": "r"}}],
    ],
)
async def test_what_the_firewall_refuses(apis, inputs):
    actual, expected = [await _infer(api, "moody", inputs) for api in apis]
    assert actual == expected
    assert actual[0] == 400


async def test_the_deadline(apis):
    inputs = [_tensor("x", "FP32", [0.6])]
    actual, expected = [await _infer(api, "moody", inputs, deadline_s=0.3) for api in apis]
    assert actual == expected
    assert actual[0] == 504


async def test_triton_killed_while_it_is_asked(apis, served):
    """And then down, and then back: the last test here, since it kills what the others use."""
    inputs = [_tensor("x", "FP32", [5])]
    assert await _both_serve(apis)  # connected: what comes is the loss of a connection
    tasks = [asyncio.create_task(_infer(api, "moody", inputs)) for api in apis]
    await asyncio.sleep(0.5)
    served.triton().kill()
    actual, expected = await asyncio.wait_for(asyncio.gather(*tasks), 30)
    assert actual == expected
    assert actual[0] == 503
    down = [await _infer(api, "moody", inputs, deadline_s=1) for api in apis]
    assert {status for status, _, _ in down} <= {503, 504}
    async with asyncio.timeout(120):
        while not await _both_serve(apis):  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.1)


async def _both_serve(apis) -> bool:
    inputs = [_tensor("x", "FP32", [0])]
    return all([(await _infer(api, "moody", inputs))[0] == 200 for api in apis])
