"""An ONNX file as our ONNX backend reads it, and a config as it completes it.

The comparison itself is the backend's own (``ort_graph.py``): we report exactly what it refuses.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from modelspec.dtypes import ELEMENT_TYPES
from serving.errors import TritonMissing
from serving.triton.installation import find_triton

if TYPE_CHECKING:
    # The files of a Triton backend are top-level modules in Triton, and for mypy.
    import ort_graph as ort_graph  # re-exported for graph.py
else:
    from serving.backends.onnxruntime import ort_graph

# Opening a session reads the weights, which takes seconds and gigabytes for the largest models.
SESSION_BYTES = 256 * 1024 * 1024
_NESTED = "model.onnx"  # a large model is a folder that contains the file
_ELEMENT_TYPES = {entry.onnx_number: entry.onnx_name for entry in ELEMENT_TYPES.values()}
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class ReadGraph:
    """``graph`` is None if the file cannot be read; ``fault`` then says why, if it is the file's
    fault. ``is_exact``: its shapes are those that the backend will see, inferred ones included."""

    path: Path
    graph: ort_graph.Graph | None = None
    fault: str = ""
    is_exact: bool = False

    def __bool__(self) -> bool:
        return self.graph is not None


@cache
def uses_our_backend() -> bool:
    """Whether onnxruntime models run in our backend, because this Triton has none of its own."""
    try:
        return not (find_triton().backends / "onnxruntime").is_dir()
    except TritonMissing:
        return True


def read(path: Path, config: ModelConfig) -> ReadGraph:
    file = path / _NESTED if path.is_dir() else path
    if not file.is_file() or _is_pointer(file):
        return ReadGraph(file)
    size = sum(path.stat().st_size for path in file.parent.iterdir() if path.is_file())
    stamp = file.stat().st_mtime_ns
    libraries = tuple(config.model_operations.op_library_filename)
    if size <= SESSION_BYTES and (opened := _opened(file, stamp, libraries)):
        return opened
    return _parsed(file, stamp)


def complete(config: ModelConfig, graph: ort_graph.Graph) -> ModelConfig:
    """The config with what the backend fills in; unchanged if the backend refuses to."""
    completed = as_backend_sees(config)
    try:
        ort_graph.drop_empty_reshape(completed)
        if not ort_graph.is_complete(completed):
            ort_graph.complete_config(completed, graph)
    except (ort_graph.ModelRefused, KeyError):
        return config
    result = ModelConfig()
    result.CopyFrom(config)
    result.max_batch_size = completed["max_batch_size"]
    for side in ("input", "output"):
        declared = getattr(result, side)
        for entry in completed[side]:
            tensor = next((tensor for tensor in declared if tensor.name == entry["name"]), None)
            tensor = declared.add(name=entry["name"]) if tensor is None else tensor
            data_type = entry.get("data_type", "TYPE_INVALID")
            tensor.data_type = (
                DataType.Value(data_type) if isinstance(data_type, str) else data_type
            )
            tensor.dims[:] = entry.get("dims", ())
    return result


def as_backend_sees(config: ModelConfig) -> ort_graph.Config:
    """The config as the JSON that Triton passes to a Python-based backend."""
    fields: ort_graph.Config = MessageToDict(
        config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for entry in (*fields["input"], *fields["output"]):
        entry["dims"] = [int(dim) for dim in entry["dims"]]
        if "reshape" in entry:
            entry["reshape"]["shape"] = [int(dim) for dim in entry["reshape"]["shape"]]
    return fields


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER


@cache
def _opened(file: Path, stamp: int, libraries: tuple[str, ...]) -> ReadGraph | None:
    """The graph as ONNX Runtime opens it, as the backend does; None if it is not installed.
    ``stamp`` (the modification time) distinguishes a file from its predecessor in the cache."""
    # Must be set before the import; otherwise 1.31 keeps a device id and sends telemetry.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        for library in libraries:
            options.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's errors share no base class
        if libraries:
            return ReadGraph(file)  # the library may be on the server's machine, but not here
        message = " ".join(str(error).split())[:300]
        return ReadGraph(file, fault=f"ONNX Runtime {onnxruntime.__version__} says: {message}")
    return ReadGraph(file, ort_graph.Graph.read(session), is_exact=True)


@cache
def _parsed(file: Path, stamp: int) -> ReadGraph:
    """The graph as the package onnx reads it, without the weights; inferred dims stay unknown."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError:
        return ReadGraph(file)
    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except (DecodeError, OSError):
        return ReadGraph(file, fault="it is not an ONNX file")
    weights = {weight.name for weight in graph.initializer}
    inputs = {value.name: _tensor(value) for value in graph.input}
    return ReadGraph(
        file,
        ort_graph.Graph(
            {name: tensor for name, tensor in inputs.items() if name not in weights},
            {name: tensor for name, tensor in inputs.items() if name in weights},
            {value.name: _tensor(value) for value in graph.output},
        ),
    )


def _tensor(value: Any) -> ort_graph.GraphTensor:
    tensor = value.type.tensor_type
    axes = tuple(
        int(dim.dim_value) if dim.HasField("dim_value") else (dim.dim_param or None)
        for dim in tensor.shape.dim
    )
    value_type = value.type.WhichOneof("value")
    fallback = value_type if value_type != "tensor_type" else f"tensor({tensor.elem_type})"
    return ort_graph.GraphTensor(
        value.name, _ELEMENT_TYPES.get(tensor.elem_type, str(fallback)), axes
    )
