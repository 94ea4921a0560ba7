"""What one model's config declares is read softly: an error says whose it is and what to do."""

import json

import pytest
from tritonclient.grpc import model_config_pb2

from modelspec.declaration import Declaration
from modelspec.errors import DeclarationError
from modelspec.parameters import (
    DETERMINISTIC_PARAMETER,
    ENDPOINT_PARAMETER,
    GOLDEN_PARAMETER,
    KV_CACHE_TOKENS_PARAMETER,
    MAX_NUM_SEQS_PARAMETER,
)

FIELD = {"type": "number", "x-tensor": "X"}
REQUEST = {"type": "object", "properties": {"x": FIELD}}
RESPONSE = {"type": "object", "properties": {"score": {"type": "number", "x-tensor": "score"}}}
GOLDEN = {"request": {"x": 1}, "expect": {"score": [1.5]}, "tolerance": 0.01}


def _read(endpoint, golden=GOLDEN, **parameters) -> Declaration:
    config = model_config_pb2.ModelConfig(name="m", max_batch_size=8)
    config.input.add(name="X", data_type=model_config_pb2.TYPE_FP32, dims=[1])
    config.output.add(name="score", data_type=model_config_pb2.TYPE_FP32, dims=[1])
    for name, value in ((ENDPOINT_PARAMETER, endpoint), (GOLDEN_PARAMETER, golden)):
        text = value if isinstance(value, str) else json.dumps(value)
        config.parameters[name].string_value = text
    for name, text in parameters.items():
        config.parameters[name].string_value = text
    return Declaration.of(config)


def _schema(request=REQUEST, response=RESPONSE, **others):
    return {"purpose": "p", "request": request, "response": response, **others}


def _with(side, field):
    return {**side, "properties": {"x": field}}


def test_what_is_right_is_read():
    declaration = _read(_schema())
    assert declaration.error is None
    assert declaration.endpoint.fields == {"x": FIELD}
    (tensor,) = declaration.probe.request.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("X", "FP32", [1, 1])


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("false", False), ("True", False)])
def test_only_true_is_deterministic(value, expected):
    config = model_config_pb2.ModelConfig(name="m")
    assert not Declaration.of(config).is_deterministic
    config.parameters[DETERMINISTIC_PARAMETER].string_value = value
    assert Declaration.of(config).is_deterministic is expected


def test_a_language_model_says_what_its_engine_takes():
    silent = _read(_schema())
    assert (silent.max_num_seqs, silent.kv_cache_tokens) == (0, 0)
    capacity = {MAX_NUM_SEQS_PARAMETER: "64", KV_CACHE_TOKENS_PARAMETER: "8192"}
    declaration = _read(_schema(), **capacity)
    assert (declaration.max_num_seqs, declaration.kv_cache_tokens) == (64, 8192)
    for text in ("many", "0", "-1", ""):
        wrong = _read(_schema(), **{MAX_NUM_SEQS_PARAMETER: text})
        assert "tidegate.max_num_seqs that is not a number above 0" in str(wrong.error)
        assert wrong.endpoint  # it is served


@pytest.mark.parametrize(
    ("endpoint", "problem"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([], "not a JSON object"),
        ({}, "needs a request and a response"),
        ({"request": 1, "response": {}}, "'request' has the wrong type"),
        (_schema(purpose=1), "'purpose' has the wrong type"),
        (_schema(card=[]), "'card' has the wrong type"),
        (_schema(openai={"chat": 1}), "must map routes to objects"),
        (_schema({"properties": []}), "properties of 'request'"),
        (_schema(_with(REQUEST, True)), "request.x is not an object"),
        (_schema(_with(REQUEST, {**FIELD, "x-tensor": 1})), "is not a name"),
        (_schema(_with(REQUEST, {"type": "number"})), "'x' bound to nothing"),
        (_schema(_with(REQUEST, {**FIELD, "x-tensor": "NO_SUCH"})), "NO_SUCH"),
        (_schema(response=_with(RESPONSE, {"type": "number"})), "'x' bound to nothing"),
        (_schema(response=_with(RESPONSE, {**FIELD, "x-tensor": "NO_SUCH"})), "NO_SUCH"),
        (
            _schema(response=_with(RESPONSE, {"items": {"properties": {"x": {}}}})),
            "'x' bound to nothing",
        ),
    ],
)
def test_an_endpoint_schema_that_cannot_be_used_is_an_error_of_its_model(endpoint, problem):
    declaration = _read(endpoint)
    assert declaration.endpoint is None and declaration.probe is None
    assert isinstance(declaration.error, DeclarationError)
    assert declaration.error.model == "m"
    assert declaration.error.problem.startswith("has an endpoint schema that ")
    assert problem in declaration.error.problem
    assert str(declaration.error).startswith("the model 'm' has an endpoint schema that ")
    assert declaration.error.remedy in str(declaration.error)


@pytest.mark.parametrize(
    ("golden", "problem"),
    [
        ("not JSON", "not JSON"),
        ({}, "must be a JSON object"),
        ({**GOLDEN, "request": {"y": 1}}, "a field 'y'"),
        ({**GOLDEN, "expect": {"other": [1]}}, "an output 'other'"),
        ({**GOLDEN, "request": {}}, "'X' gets no value"),
        ({**GOLDEN, "request": {"x": "one"}}, "FP32 is a number"),
        ({**GOLDEN, "request": {"x": [1, 2]}}, "do not fill the shape"),
        ({**GOLDEN, "request": {"x": 10**400}}, "does not fit FP32"),
    ],
)
def test_a_golden_sample_that_cannot_be_used_leaves_the_endpoint(golden, problem):
    declaration = _read(_schema(), golden)
    assert declaration.endpoint is not None and declaration.probe is None
    assert declaration.error.problem.startswith("has a golden sample that ")
    assert problem in declaration.error.problem
