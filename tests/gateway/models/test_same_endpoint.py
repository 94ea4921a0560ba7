"""Whether one pipeline can stand in for another, and if not, what is different."""

from dataclasses import replace

import pytest

from gateway.models.catalogue import Model, TensorMeta
from gateway.models.compiled_endpoint import CompiledEndpoint
from gateway.models.same_endpoint import difference
from gateway.models.sequences import SequenceSlots
from modelspec.endpoint_schema import EndpointSchema

X = {"type": "string", "maxLength": 8, "x-tensor": "x"}
Y = {"type": "number", "x-tensor": "y"}


def _model(name="a", x=X, y=Y, openai=None, **more):
    schema = EndpointSchema(
        f"What {name} does.",
        {"type": "object", "properties": {"x": x}},
        {"type": "object", "properties": {"y": y}},
        {"x": name},
        {"note": name},
        openai or {},
    )
    fields = {
        "versions": ("1",),
        "max_batch_size": 8,
        "inputs": {"x": TensorMeta("x", "BYTES", (1,))},
        "outputs": {"y": TensorMeta("y", "FP32", (1,))},
        "decoupled": False,
        "endpoint_schema": CompiledEndpoint.compile(schema),
        "probe": None,
    }
    return Model(name=name, **{**fields, **more})


def test_what_is_said_to_people_may_differ():
    described = {**X, "description": "A text.", "title": "Text", "examples": ["a"]}
    assert difference(_model(), _model("b", x=described, versions=("2", "3"))) == ""


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (
            {"x": {**X, "maxLength": 9}},
            "request.properties.x.maxLength is 8, and 9 in the fallback",
        ),
        ({"x": {**X, "pattern": "a"}}, "request.properties.x.pattern is only in the fallback"),
        ({"y": {"x-tensor": "y"}}, "response.properties.y.type is missing in the fallback"),
        ({"openai": {"embeddings": {}}}, "openai.embeddings is only in the fallback"),
        (
            {"outputs": {"y": TensorMeta("y", "FP32", (2,))}},
            "outputs.y is ['y', 'FP32', [1], False], and ['y', 'FP32', [2], False] in the fallback",
        ),
        ({"decoupled": True}, "decoupled is False, and True in the fallback"),
        ({"max_batch_size": 4}, "max_batch_size is 8, and 4 in the fallback"),
        ({"endpoint_schema": None}, "b has no endpoint schema"),
        ({"canary_of": "a"}, "b is a canary"),
        ({"sequences": SequenceSlots(1, 1)}, "b keeps state between requests"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_first_difference_is_named(other, expected):
    assert difference(_model(), _model("b", **other)) == expected


def test_a_field_may_be_called_like_an_annotation():
    one, other = _model(), _model("b")
    schema = other.endpoint_schema.schema
    request = {"type": "object", "properties": {"x": X, "title": X}}
    other = replace(
        other, endpoint_schema=CompiledEndpoint.compile(replace(schema, request=request))
    )
    assert difference(one, other) == "request.properties.title is only in the fallback"
