"""One golden sample, one verdict: the publisher's and the gateway's."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from gateway.models.catalogue import read_model
from modelspec.errors import DeclarationError
from modelspec.golden import Golden, agree
from modelspec.parameters import ENDPOINT_PARAMETER, GOLDEN_PARAMETER
from serving.triton.golden import fault

GOOD = {"request": {"x": 1}, "expect": {"score": [1.5]}, "tolerance": 0.01}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ("nonsense", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "must be a JSON object"),
        ("[]", "must be a JSON object"),
        ("null", "must be a JSON object"),
        (json.dumps(GOOD | {"more": 1}), "nothing else"),
        (json.dumps(GOOD | {"request": 1}), "request that is not"),
        (json.dumps(GOOD | {"expect": {}}), "must expect something"),
        (json.dumps(GOOD | {"expect": []}), "must expect something"),
        (json.dumps(GOOD | {"expect": {"score": []}}), "list of elements"),
        (json.dumps(GOOD | {"expect": {"score": 1}}), "list of elements"),
        (json.dumps(GOOD | {"expect": {"score": ["a", 1]}}), "only texts or only numbers"),
        (json.dumps(GOOD | {"expect": {"score": [[1]]}}), "only texts or only numbers"),
        (json.dumps(GOOD | {"expect": {"score": [math.nan]}}), "no NaN"),
        (json.dumps(GOOD | {"tolerance": math.inf}), "no Infinity"),
        (json.dumps(GOOD).replace("1.5", "1e999"), "too large"),
        (json.dumps(GOOD).replace("1.5", "1" + 400 * "0"), "too large"),
        (json.dumps(GOOD).replace("0.01", "1" + 400 * "0"), "tolerance"),
        (json.dumps(GOOD | {"tolerance": -1}), "tolerance"),
        (json.dumps(GOOD | {"tolerance": True}), "tolerance"),
        (json.dumps(GOOD | {"tolerance": None}), "tolerance"),
    ],
)
def test_a_sample_that_cannot_be_used_says_why(text, reason):
    with pytest.raises(DeclarationError, match=reason):
        Golden.parse(text)


def test_a_sample_survives_writing_and_parsing_nan_included():
    golden = Golden({"x": 1}, {"score": [1.5, math.nan]}, 0.01)
    parsed = Golden.parse(golden.to_json())
    assert parsed.expect == {"score": [1.5, None]}
    assert parsed.fault({"score": [1.505, math.nan]}) == ""
    assert "wrongly" in parsed.fault({"score": [1.5, 2.0]})


@pytest.mark.parametrize(
    ("actual", "expected", "agrees"),
    [
        ([1.0], [1.005], True),
        ([1.0], [1.02], False),
        ([np.float32(1.0)], [1], True),
        ([math.nan], [1.0], False),
        ([1.0], [None], False),
        ([math.nan], [None], True),
        ([math.inf], [1.0], False),
        ([2**60 + 1], [2**60], False),  # exact, where a float would not tell them apart
        ([np.int64(2**60)], [2**60], True),
        ([np.bool_(True)], [True], True),
        ([np.bool_(False)], [True], False),
        ([b"hotel"], ["hotel"], True),
        ([b"\xff"], ["\ufffd"], True),
        ([b"1"], [1], False),
        ([1], ["1"], False),
        ([1.0], [1.0, 2.0], False),
    ],
)
def test_elements_agree(actual, expected, agrees):
    assert agree(actual, expected, 0.01) is agrees


def _config(golden: str) -> model_config_pb2.ModelConfig:
    endpoint_schema = {
        "purpose": "p",
        "request": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"x": {"type": "number", "x-tensor": "X"}},
        },
        "response": {
            "type": "object",
            "properties": {"score": {"type": "number", "x-tensor": "score"}},
        },
    }
    config = model_config_pb2.ModelConfig(name="m", max_batch_size=8)
    config.input.add(name="X", data_type=model_config_pb2.TYPE_FP32, dims=[1])
    config.output.add(name="score", data_type=model_config_pb2.TYPE_FP32, dims=[1])
    config.parameters[ENDPOINT_PARAMETER].string_value = json.dumps(endpoint_schema)
    config.parameters[GOLDEN_PARAMETER].string_value = golden
    return config


def _response(values: list[float]) -> service_pb2.ModelInferResponse:
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="score", datatype="FP32", shape=[1, len(values)])
    response.raw_output_contents.append(np.array(values, np.float32).tobytes())
    return response


@pytest.mark.parametrize(
    "golden",
    [
        "nonsense",
        "{}",
        json.dumps(GOOD | {"expect": {"score": [math.nan]}}),
        json.dumps(GOOD | {"request": {"y": 1}}),
        json.dumps(GOOD | {"expect": {"other": [1]}}),
        json.dumps(GOOD | {"request": {"x": [1, 2]}}),
        json.dumps(GOOD | {"request": {"x": 1e39}}),
        json.dumps(GOOD | {"request": {}}),
    ],
)
def test_a_bad_sample_is_a_fault_for_publisher_and_gateway_alike(golden):
    config = _config(golden)
    model = read_model(config, ("1",))
    assert model.probe is None
    assert model.golden_fault == fault(SimpleNamespace(), "m", config)


@pytest.mark.parametrize("values", [[1.5], [1.6], [math.nan], [math.inf], []])
@pytest.mark.parametrize("expected", [1.5, None])
def test_publisher_and_gateway_come_to_the_same_verdict(values, expected):
    config = _config(json.dumps(GOOD | {"expect": {"score": [expected]}}))
    model = read_model(config, ("1",))
    control = SimpleNamespace(infer=lambda request, timeout_s: _response(values))
    row = np.array([values], np.float32)[0].reshape(-1)
    verdict = model.probe.golden.fault({"score": row})
    assert verdict == fault(control, "m", config)
    correct = values == [1.5] if expected else bool(values) and math.isnan(values[0])
    assert (verdict == "") is correct


def test_the_elements_of_streamed_responses_are_joined():
    config = _config(json.dumps(GOOD | {"expect": {"score": [1, 2]}}))
    config.model_transaction_policy.decoupled = True
    requests = []

    def stream(request, timeout_s):
        requests.append(request)
        for value in (1.0, 2.0):
            yield _response([value])

    assert fault(SimpleNamespace(stream_infer=stream), "m", config) == ""
    assert len(requests) == 1
