"""Any pipeline of plain tensors: the model's own inputs -> NAME_onnx -> its outputs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ensembles.engine import onnx_engine
from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.model import ModelSpec, Pipeline, StepSpec, TensorSpec
from modelspec.names import Role, member_name

MAX_BATCH_SIZE = 32
JSON_TYPES = {
    "BOOL": "boolean",
    "BYTES": "string",
    "FP16": "number",
    "FP32": "number",
    "FP64": "number",
}


def declare(
    name: str, metadata: Mapping[str, Any], golden: Golden, card: Mapping[str, Any]
) -> Pipeline:
    """The pipeline of a model with the metadata ``inputs`` and ``outputs``: lists of mappings with
    name, dtype (V2) and dims, the batch axis left out."""
    inputs, outputs = _tensors(metadata["inputs"]), _tensors(metadata["outputs"])
    engine_inputs = _tensors(metadata["inputs"], flat=True)
    engine_outputs = _tensors(metadata["outputs"], flat=True)
    engine = onnx_engine(name, engine_inputs, engine_outputs, MAX_BATCH_SIZE)
    public = ModelSpec(
        name=name,
        backend="ensemble",
        max_batch_size=MAX_BATCH_SIZE,
        inputs=inputs,
        outputs=outputs,
        steps=(
            StepSpec(member_name(name, Role.ENGINE), 1, _same_names(inputs), _same_names(outputs)),
        ),
        endpoint_schema=_endpoint_schema(metadata, golden, card),
        golden=golden,
        deterministic=True,
    )
    return Pipeline((engine,), public)


def _tensors(
    declarations: Sequence[Mapping[str, Any]], flat: bool = False
) -> tuple[TensorSpec, ...]:
    """``flat``: as the graph has them, for the engine's own config."""
    # Triton wants an axis besides the batch's: one number per row is declared as [1].
    return tuple(
        TensorSpec(
            declaration["name"],
            declaration["dtype"],
            tuple(declaration["dims"]) or (1,),
            flat and not declaration["dims"],
        )
        for declaration in declarations
    )


def _same_names(tensors: Sequence[TensorSpec]) -> dict[str, str]:
    return {tensor.name: tensor.name for tensor in tensors}


def _endpoint_schema(
    metadata: Mapping[str, Any], golden: Golden, card: Mapping[str, Any]
) -> EndpointSchema:
    inputs, outputs = metadata["inputs"], metadata["outputs"]
    return EndpointSchema(
        purpose=f"Run the model on {', '.join(tensor['name'] for tensor in inputs)}.",
        request={
            "type": "object",
            "required": [tensor["name"] for tensor in inputs],
            "additionalProperties": False,
            "properties": {tensor["name"]: _input(tensor) for tensor in inputs},
        },
        response={
            "type": "object",
            "required": [tensor["name"] for tensor in outputs],
            "properties": {tensor["name"]: _output(tensor) for tensor in outputs},
        },
        example=golden.request,
        card=card,
    )


def _input(tensor: Mapping[str, Any]) -> dict[str, object]:
    """A number, or the elements of a row, flat in row-major order."""
    element, dims = {"type": _json_type(tensor["dtype"])}, tensor["dims"]
    if not dims:
        return {**element, "x-tensor": tensor["name"]}
    field = {
        "type": "array",
        "description": f"Shape {list(dims)}, flat, in row-major order"
        + (" (-1: any length)." if -1 in dims else "."),
        "items": element,
        "minItems": 1,
        "x-tensor": tensor["name"],
    }
    count = math.prod(dims)
    return field if -1 in dims else {**field, "minItems": count, "maxItems": count}


def _output(tensor: Mapping[str, Any]) -> dict[str, object]:
    element = {"type": _json_type(tensor["dtype"])}
    if not tensor["dims"]:
        return {**element, "x-tensor": tensor["name"]}
    return {
        "type": "array",
        "description": f"Shape {list(tensor['dims'])}.",
        # Numbers come as nested lists, texts flat.
        "items": element
        if len(tensor["dims"]) == 1 or tensor["dtype"] == "BYTES"
        else {"type": "array"},
        "x-tensor": tensor["name"],
    }


def _json_type(dtype: str) -> str:
    return JSON_TYPES.get(dtype, "integer")
