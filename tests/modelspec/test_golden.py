"""Golden samples: parsed strictly, and one verdict at the publisher and at the gateway."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from gateway.models.catalogue import read_model
from gateway.probes import golden_answer
from modelspec.dtypes import element_type
from modelspec.golden import GoldenError, golden_fault, parse_golden
from modelspec.pbtxt import parse
from serving.golden import fault_of_config

BAD = {
    "not JSON": "not JSON",
    "cut": '{"request": {',
    "empty": "",
    "deep": "[" * 100_000,
    "no object": "[]",
    "nothing": "{}",
    "null": "null",
    "no request": '{"expect": {"y": [1]}, "tolerance": 0}',
    "request of another type": '{"request": [], "expect": {"y": [1]}, "tolerance": 0}',
    "expects nothing": '{"request": {}, "expect": {}, "tolerance": 0}',
    "expects no value": '{"request": {}, "expect": {"y": []}, "tolerance": 0}',
    "expects no list": '{"request": {}, "expect": {"y": 1}, "tolerance": 0}',
    "expects NaN": '{"request": {}, "expect": {"y": [NaN]}, "tolerance": 0}',
    "expects infinity": '{"request": {}, "expect": {"y": [1e999]}, "tolerance": 0}',
    "expects null": '{"request": {}, "expect": {"y": [null]}, "tolerance": 0}',
    "expects both": '{"request": {}, "expect": {"y": [1, "a"]}, "tolerance": 0}',
    "no tolerance": '{"request": {}, "expect": {"y": [1]}}',
    "a negative tolerance": '{"request": {}, "expect": {"y": [1]}, "tolerance": -1}',
    "an endless tolerance": '{"request": {}, "expect": {"y": [1]}, "tolerance": 1e999}',
    "a tolerance that is text": '{"request": {}, "expect": {"y": [1]}, "tolerance": "0"}',
    "a tolerance that is true": '{"request": {}, "expect": {"y": [1]}, "tolerance": true}',
    "an unknown field": '{"request": {"z": 1}, "expect": {"y": [1]}, "tolerance": 0}',
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_sample_that_cannot_be_used_is_refused_with_one_error(text):
    with pytest.raises(GoldenError, match="golden sample"):
        parse_golden(text, {"x": {"type": "number"}})


# What a model gives: (type, values); what is expected of it; whether that is right at 0.1.
CASES = [
    (("FP32", [1.0, 2.0]), [1, 2], True),
    (("FP32", [1.05, 2.0]), [1], True),
    (("FP32", [1.2]), [1], False),
    (("FP32", [float("nan")]), [1], False),
    (("FP32", [float("inf")]), [1], False),
    (("FP32", [1.0]), [1, 2], False),
    (("FP32", []), [1], False),
    (("FP16", [1.0]), [1], True),
    (("INT64", [2**60 + 1]), [2**60], False),
    (("INT64", [2**60]), [2**60], True),
    (("UINT8", [0]), [255], False),
    (("INT8", [-128]), [127], False),
    (("BOOL", [True]), [True], True),
    (("BYTES", [b"a", b"b"]), ["a"], True),
    (("BYTES", [b"a"]), ["b"], False),
    (("BYTES", [b"\xff"]), ["a"], False),
    (("BYTES", [b"1"]), [1], False),
    (("FP32", [1.0]), ["1.0"], False),
]
SHAPES = ([1, -1], [-1], [1, 1, -1])


def _config(datatype: str, batch: int, decoupled: bool, golden: str):
    field = {"type": "number", "x-tensor": "x"}
    shown = {"type": "array", "x-tensor": "y"}
    face = {
        "purpose": "A test.",
        "request": {"type": "object", "properties": {"x": field}},
        "response": {"type": "object", "properties": {"y": {**shown, "items": {}}}},
        "example": {"x": 1},
    }
    kind = "STRING" if datatype == "BYTES" else datatype
    config = parse(
        f'name: "m" backend: "python" max_batch_size: {batch} '
        f'input {{ name: "x" data_type: TYPE_FP32 dims: 1 }} '
        f'output {{ name: "y" data_type: TYPE_{kind} dims: -1 }}'
    )
    config.model_transaction_policy.decoupled = decoupled
    config.parameters["tidegate.face"].string_value = json.dumps(face)
    config.parameters["tidegate.golden"].string_value = golden
    return config


def _response(datatype, values, shape, name="y"):
    response = service_pb2.ModelInferResponse(model_name="m")
    full = [len(values) if dim == -1 else dim for dim in shape]
    response.outputs.add(name=name, datatype=datatype, shape=full)
    if datatype == "BYTES":
        raw = bytes(serialize_byte_tensor(np.array(values, dtype=object)).item()) if values else b""
    else:
        raw = np.array(values, dtype=element_type(datatype).numpy).tobytes()
    response.raw_output_contents.append(raw)
    return response


class _Stream:
    def __init__(self, responses):
        self._left = [service_pb2.ModelStreamInferResponse(infer_response=r) for r in responses]

    async def write(self, message):
        assert message.model_name == "m"

    async def done_writing(self):
        pass

    async def read(self):
        import grpc

        return self._left.pop(0) if self._left else grpc.aio.EOF

    def cancel(self):
        pass


async def _gateway(config, responses) -> str:
    """The verdict of the gateway's probe, where the model answers this."""

    async def infer(message, timeout_s):
        return responses[0]

    model = read_model(config, ("1",))
    if model.golden_fault:
        return f"cannot be asked its golden sample: {model.golden_fault}"
    upstream = SimpleNamespace(infer=infer, open_stream=lambda timeout_s: _Stream(responses))
    return golden_fault(
        model.golden, await golden_answer(upstream, model, model.face, model.golden, 1)
    )


def _publisher(config, responses) -> str:
    control = SimpleNamespace(
        infer=lambda request, timeout_s: responses[0],
        stream_infer=lambda request, timeout_s: iter(responses),
    )
    return fault_of_config(control, "m", config)


@pytest.mark.parametrize(("given", "expected", "is_right"), CASES)
async def test_publisher_and_gateway_give_the_same_verdict(given, expected, is_right):
    golden = json.dumps({"request": {"x": 1}, "expect": {"y": expected}, "tolerance": 0.1})
    datatype, values = given
    for shape, batch, name in itertools.product(SHAPES, (0, 8), ("y", "z")):
        config = _config(datatype, batch, False, golden)
        responses = [_response(datatype, values, shape, name)]
        verdicts = {await _gateway(config, responses), _publisher(config, responses)}
        assert len(verdicts) == 1
        assert (verdicts == {""}) == (is_right and name == "y")


@pytest.mark.parametrize(
    "text", [*BAD.values(), '{"request": {"x": 1}, "expect": {"y": [1]}, "tolerance": 0}']
)
async def test_publisher_and_gateway_refuse_the_same_samples(text):
    config, responses = _config("FP32", 0, False, text), [_response("FP32", [1.0], [1])]
    assert await _gateway(config, responses) == _publisher(config, responses)


async def test_the_answers_of_a_decoupled_model_are_joined():
    golden = json.dumps({"request": {"x": 1}, "expect": {"y": ["a", "b"]}, "tolerance": 0})
    config = _config("BYTES", 0, True, golden)
    for pieces, is_right in (((b"a", b"b", b"c"), True), ((b"a", b"c"), False), ((b"a",), False)):
        responses = [_response("BYTES", [piece], [1]) for piece in pieces]
        verdicts = {await _gateway(config, responses), _publisher(config, responses)}
        assert len(verdicts) == 1
        assert (verdicts == {""}) == is_right
