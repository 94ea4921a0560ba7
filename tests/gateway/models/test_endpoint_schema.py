"""An endpoint schema binds fields to tensors in both directions; the gateway needs no more."""

import json

import numpy as np
import pytest

from gateway.errors import InvalidRequest
from gateway.models.catalogue import Model, TensorMeta
from gateway.models.compiled_endpoint import CompiledEndpoint
from gateway.models.rows import batches
from modelspec.endpoint_schema import EndpointSchema
from modelspec.errors import DeclarationError

REQUEST = {
    "type": "object",
    "required": ["text"],
    "additionalProperties": False,
    "properties": {
        "text": {"type": "string", "minLength": 1, "x-tensor": "TEXT"},
        "weights": {"type": "array", "items": {"type": "number"}, "x-tensor": "WEIGHTS"},
        "image": {"type": "object", "x-tensor": "IMAGE", "x-bytes": True},
        "greedy": {"type": "boolean", "x-parameter": "greedy"},
    },
}
RESPONSE = {
    "type": "object",
    "properties": {
        "score": {"type": "number", "x-tensor": "SCORE"},
        "vector": {"type": "array", "x-tensor": "VECTOR"},
        "entities": {
            "type": "array",
            "x-count": "COUNT",
            "items": {
                "type": "object",
                "properties": {
                    "label": {"type": "string", "x-tensor": "LABEL"},
                    "start": {"type": "integer", "x-tensor": "START"},
                },
            },
        },
    },
}


def _schema(request=REQUEST, response=RESPONSE) -> CompiledEndpoint:
    text = json.dumps({"purpose": "p", "request": request, "response": response})
    return CompiledEndpoint.compile(EndpointSchema.parse(text))


def _model(max_batch_size: int = 4) -> Model:
    inputs = {
        "TEXT": TensorMeta("TEXT", "BYTES", (1,)),
        "WEIGHTS": TensorMeta("WEIGHTS", "FP32", (-1,), optional=True),
        "IMAGE": TensorMeta("IMAGE", "BYTES", (1,), optional=True),
    }
    return Model("m", ("1",), max_batch_size, inputs, {}, False, _schema(), None)


def test_a_response_leaves_out_a_field_that_its_tensor_says_is_missing():
    text = {"type": "string", "x-tensor": "TEXT", "x-null": ""}
    schema = _schema(response={"type": "object", "properties": {"text": text}})
    tensors = {"TEXT": np.array([[b""], [b"x"]], dtype=object)}
    assert [schema.render(tensors, row) for row in (0, 1)] == [{}, {"text": "x"}]


def test_outputs_become_scalars_lists_and_records():
    tensors = {
        "SCORE": np.array([[0.5], [0.25]], dtype=np.float32),
        "VECTOR": np.arange(6, dtype=np.float32).reshape(2, 3),
        "COUNT": np.array([[1], [2]], dtype=np.int32),
        "LABEL": np.array([[b"PER", b""], [b"ORG", "地".encode()]], dtype=object),
        "START": np.array([[3, 0], [1, 2]], dtype=np.int32),
    }
    row = _schema().render(tensors, 1)
    assert row["score"] == 0.25
    assert row["vector"].tolist() == [3, 4, 5]
    assert row["entities"] == [{"label": "ORG", "start": 1}, {"label": "地", "start": 2}]
    assert _schema().render(tensors, 0)["entities"] == [{"label": "PER", "start": 3}]


def test_rows_that_can_share_a_request_do():
    rows = [
        {"text": "a"},
        {"text": "b", "greedy": True},
        {"text": "c"},
        {"text": "d", "weights": [1, 2]},
        {"text": "e", "weights": [1]},
    ]
    row_batches = batches(_model(), _schema(), rows)
    assert [batch.row_indices for batch in row_batches] == [(0, 2), (1,), (3,), (4,)]
    assert row_batches[1].message.parameters["greedy"].bool_param
    assert [list(t.shape) for t in row_batches[2].message.inputs] == [[1, 1], [1, 2]]


def test_a_batch_is_never_larger_than_the_model_takes():
    row_batches = batches(_model(), _schema(), [{"text": str(n)} for n in range(10)])
    assert [len(batch.row_indices) for batch in row_batches] == [4, 4, 2]
    row_batches = batches(_model(0), _schema(), [{"text": str(n)} for n in range(3)])
    assert [list(batch.message.inputs[0].shape) for batch in row_batches] == [[1]] * 3


def test_bytes_are_sent_as_base64():
    row_batches = batches(_model(), _schema(), [{"text": "a", "image": {"b64": "AAH/"}}])
    assert row_batches[0].message.raw_input_contents[1] == b"\x03\x00\x00\x00\x00\x01\xff"
    with pytest.raises(InvalidRequest, match=r"image\.b64 is not base64"):
        batches(_model(), _schema(), [{"text": "a", "image": {"b64": "not base64!"}}])


@pytest.mark.parametrize(
    ("row", "param"),
    [
        ({"text": ""}, "inputs.3.text"),
        ({"text": "a", "weights": [1, "x"]}, "inputs.3.weights.1"),
        ({"txt": "a"}, "inputs.3"),
        ("a", "inputs.3"),
    ],
)
def test_a_row_that_does_not_fit_names_its_field(row, param):
    with pytest.raises(InvalidRequest) as refused:
        _schema().check(row, "inputs.3")
    assert refused.value.param == param


def test_a_schema_of_requests_that_is_no_json_schema_is_refused():
    with pytest.raises(DeclarationError, match="cannot be read"):
        _schema(request={"type": "objekt", "properties": {}})
