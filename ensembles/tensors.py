"""A pipeline of plain tensors, of any name: the model's own inputs -> NAME_onnx -> its outputs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ensembles.engine import onnx_engine
from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.model import ModelSpec, Pipeline, StepSpec, TensorSpec

MAX_BATCH_SIZE = 32
JSON_TYPES = {"BOOL": "boolean", "BYTES": "string", "FP16": "number", "FP32": "number"} | {
    "FP64": "number"
}


def declare(
    name: str, facts: Mapping[str, Any], golden: Golden, card: Mapping[str, Any]
) -> Pipeline:
    """The pipeline of a model whose facts are ``inputs`` and ``outputs``: each a mapping with name,
    dtype (V2) and dims, the batch axis left out."""
    inputs, outputs = _tensors(facts["inputs"]), _tensors(facts["outputs"])
    taken, given = _tensors(facts["inputs"], flat=True), _tensors(facts["outputs"], flat=True)
    engine = onnx_engine(name, taken, given, MAX_BATCH_SIZE)
    public = ModelSpec(
        name=name,
        backend="ensemble",
        max_batch_size=MAX_BATCH_SIZE,
        inputs=inputs,
        outputs=outputs,
        steps=(StepSpec(f"{name}_onnx", 1, _same(inputs), _same(outputs)),),
        endpoint_schema=_face(facts, golden, card),
        golden=golden,
    )
    return Pipeline((engine,), public)


def _tensors(ports: Sequence[Mapping[str, Any]], flat: bool = False) -> tuple[TensorSpec, ...]:
    """``flat``: as the graph has them, for its own config."""
    # Triton wants an axis beside the batch's: a number a row is written [1].
    return tuple(
        TensorSpec(p["name"], p["dtype"], tuple(p["dims"]) or (1,), flat and not p["dims"])
        for p in ports
    )


def _same(tensors: Sequence[TensorSpec]) -> dict[str, str]:
    return {tensor.name: tensor.name for tensor in tensors}


def _face(facts: Mapping[str, Any], golden: Golden, card: Mapping[str, Any]) -> EndpointSchema:
    inputs, outputs = facts["inputs"], facts["outputs"]
    return EndpointSchema(
        purpose=f"Run the model on {', '.join(port['name'] for port in inputs)}.",
        request={
            "type": "object",
            "required": [port["name"] for port in inputs],
            "additionalProperties": False,
            "properties": {port["name"]: _input(port) for port in inputs},
        },
        response={
            "type": "object",
            "required": [port["name"] for port in outputs],
            "properties": {port["name"]: _output(port) for port in outputs},
        },
        example=golden.request,
        card=card,
    )


def _input(port: Mapping[str, Any]) -> dict[str, Any]:
    """A number, or the elements of a row, flat in row-major order."""
    element, dims = {"type": _json_type(port["dtype"])}, port["dims"]
    if not dims:
        return {**element, "x-tensor": port["name"]}
    field = {
        "type": "array",
        "description": f"Shape {list(dims)}, flat, in row-major order"
        + (" (-1: any length)." if -1 in dims else "."),
        "items": element,
        "minItems": 1,
        "x-tensor": port["name"],
    }
    count = math.prod(dims)
    return field if -1 in dims else {**field, "minItems": count, "maxItems": count}


def _output(port: Mapping[str, Any]) -> dict[str, Any]:
    element = {"type": _json_type(port["dtype"])}
    if not port["dims"]:
        return {**element, "x-tensor": port["name"]}
    return {
        "type": "array",
        "description": f"Shape {list(port['dims'])}.",
        # Numbers come as rows of rows, texts flat.
        "items": element
        if len(port["dims"]) == 1 or port["dtype"] == "BYTES"
        else {"type": "array"},
        "x-tensor": port["name"],
    }


def _json_type(dtype: str) -> str:
    return JSON_TYPES.get(dtype, "integer")
