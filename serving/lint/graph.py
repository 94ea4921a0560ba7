"""Does the config say what the ONNX file says? Read with the package onnx, where it is installed;
without it the files are not looked into."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonclient.grpc.model_config_pb2 import DataType

from serving.lint.finding import Finding, error
from serving.lint.reading import Model

# onnx.TensorProto.DataType -> Triton's name
_TYPES = {
    1: "TYPE_FP32",
    2: "TYPE_UINT8",
    3: "TYPE_INT8",
    4: "TYPE_UINT16",
    5: "TYPE_INT16",
    6: "TYPE_INT32",
    7: "TYPE_INT64",
    8: "TYPE_STRING",
    9: "TYPE_BOOL",
    10: "TYPE_FP16",
    11: "TYPE_FP64",
    12: "TYPE_UINT32",
    13: "TYPE_UINT64",
    16: "TYPE_BF16",
}


def check(model: Model) -> Iterator[Finding]:
    if model.backend != "onnxruntime" or not model.model_file:
        return
    for version in model.served:
        path = model.folder / str(version) / model.model_file
        if path.is_file():
            yield from _file(model, f"{model.name}/{version}/{path.name}", path)


def _file(model: Model, place: str, path: Path) -> Iterator[Finding]:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError:
        return
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (DecodeError, OSError):
        yield error("graph-broken", place, "is no ONNX file", "export it again")
        return
    weights = {each.name for each in graph.initializer}
    inputs = {each.name: each for each in graph.input if each.name not in weights}
    outputs = {each.name: each for each in graph.output}
    config = model.config
    yield from _missing(model, place, inputs)
    for declared, there in ((config.input, inputs), (config.output, outputs)):
        for tensor in declared:
            yield from _tensor(model, tensor, there, place)


def _missing(model: Model, place: str, inputs: dict[str, Any]) -> Iterator[Finding]:
    config = model.config
    declared = {tensor.name for tensor in config.input}
    for name in sorted(set(inputs) - declared) if declared else ():
        yield error(
            "graph-input-undeclared",
            f"{model.place}:{name}",
            f"{place} has this input, and the config does not declare it",
            "add it to the config",
        )


def _tensor(model: Model, tensor: Any, there: dict[str, Any], file: str) -> Iterator[Finding]:
    place = f"{model.place}:{tensor.name}"
    if tensor.name not in there:
        yield error(
            "graph-tensor-unknown",
            place,
            f"{file} has no such tensor",
            f"use one of: {', '.join(sorted(there))}",
        )
        return
    kind = there[tensor.name].type.tensor_type
    wanted, declared = _TYPES.get(kind.elem_type), DataType.Name(tensor.data_type)
    if tensor.data_type and wanted and wanted != declared:
        yield error("graph-type", place, f"says {declared}, and {file} {wanted}", f"write {wanted}")
    if kind.HasField("shape"):
        yield from _shape(model, place, tensor, [_dim(dim) for dim in kind.shape.dim])


def _shape(model: Model, place: str, tensor: Any, graph: list[int]) -> Iterator[Finding]:
    config = model.config
    batched = config.max_batch_size > 0
    own = list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
    said = [-1, *own] if batched else own
    if batched and graph and graph[0] not in (-1, config.max_batch_size):
        yield error(
            "graph-batch-fixed",
            place,
            f"the model's first axis is fixed at {graph[0]}, and max_batch_size is "
            f"{config.max_batch_size}: Triton needs it open",
            "export it with a dynamic batch axis, or set max_batch_size: 0 and write the axis out",
        )
    elif len(said) != len(graph) or _differ(said, graph):
        right = graph[1:] if batched else graph
        yield error(
            "graph-shape",
            place,
            f"says {said}{' with the batch axis' if batched else ''}, and the model {graph}",
            f"write dims: {right or [1]}"
            + ("" if right else " and reshape { shape: [ ] }")
            + ("" if not batched else "; max_batch_size above 0 adds the batch axis itself"),
        )


def _differ(said: list[int], graph: list[int]) -> bool:
    return any(-1 not in (a, b) and a != b for a, b in zip(said, graph, strict=True))


def _dim(dim: Any) -> int:
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value > 0 else -1
