"""An ONNX file as our ONNX backend reads it, and a config as it completes it.

The comparison itself is the backend's own (``ort_graph.py``): what it refuses is what we tell.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from serving.errors import TritonMissing
from serving.installation import find_triton

if TYPE_CHECKING:
    # Files of a Triton backend are modules of their own there, and to mypy.
    import ort_graph as ort_graph  # graph.py has it from here
else:
    from serving.backends.onnxruntime import ort_graph

# Opening a session reads the weights, seconds and gigabytes for the largest.
SESSION_BYTES = 256 * 1024 * 1024
_NESTED = "model.onnx"  # a large model is a folder that holds the file
_ELEMENT_TYPES = {
    1: "tensor(float)",
    2: "tensor(uint8)",
    3: "tensor(int8)",
    4: "tensor(uint16)",
    5: "tensor(int16)",
    6: "tensor(int32)",
    7: "tensor(int64)",
    8: "tensor(string)",
    9: "tensor(bool)",
    10: "tensor(float16)",
    11: "tensor(double)",
    12: "tensor(uint32)",
    13: "tensor(uint64)",
    16: "tensor(bfloat16)",
}
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class ReadGraph:
    """``graph`` is None where the file cannot be read, and then ``fault`` says why if it is the
    file's fault. ``is_sure``: its shapes are those that the backend will see, inferred ones too."""

    path: Path
    graph: ort_graph.Graph | None = None
    fault: str = ""
    is_sure: bool = False

    def __bool__(self) -> bool:
        return self.graph is not None


@cache
def runs_in_ours() -> bool:
    """Whether models of onnxruntime run in our backend: this Triton has none of its own."""
    try:
        return not (find_triton().backends / "onnxruntime").is_dir()
    except TritonMissing:
        return True


def read(path: Path, config: ModelConfig) -> ReadGraph:
    file = path / _NESTED if path.is_dir() else path
    if not file.is_file() or _is_pointer(file):
        return ReadGraph(file)
    weight = sum(each.stat().st_size for each in file.parent.iterdir() if each.is_file())
    stamp = file.stat().st_mtime_ns
    libraries = tuple(config.model_operations.op_library_filename)
    if weight <= SESSION_BYTES and (found := _opened(file, stamp, libraries)):
        return found
    return _parsed(file, stamp)


def complete(config: ModelConfig, graph: ort_graph.Graph) -> ModelConfig:
    """The config with what the backend fills in; as it is where the backend refuses to."""
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
            tensor = next((each for each in declared if each.name == entry["name"]), None)
            tensor = declared.add(name=entry["name"]) if tensor is None else tensor
            data_type = entry.get("data_type", "TYPE_INVALID")
            tensor.data_type = (
                DataType.Value(data_type) if isinstance(data_type, str) else data_type
            )
            tensor.dims[:] = entry.get("dims", ())
    return result


def as_backend_sees(config: ModelConfig) -> ort_graph.Config:
    """The config as the JSON that Triton hands to a Python-based backend."""
    seen: ort_graph.Config = MessageToDict(
        config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for entry in (*seen["input"], *seen["output"]):
        entry["dims"] = [int(dim) for dim in entry["dims"]]
        if "reshape" in entry:
            entry["reshape"]["shape"] = [int(dim) for dim in entry["reshape"]["shape"]]
    return seen


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER


@cache
def _opened(file: Path, stamp: int, libraries: tuple[str, ...]) -> ReadGraph | None:
    """By ONNX Runtime, as the backend does; None where it is not installed. ``stamp`` tells a file
    from what stood there before."""
    # Read when the library is loaded; else 1.31 keeps a device id and sends events to its maker.
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
            return ReadGraph(file)  # the library may lie where the server is, and not here
        says = " ".join(str(error).split())[:300]
        return ReadGraph(file, fault=f"ONNX Runtime {onnxruntime.__version__} says: {says}")
    return ReadGraph(file, ort_graph.Graph.read(session), is_sure=True)


@cache
def _parsed(file: Path, stamp: int) -> ReadGraph:
    """By the package onnx, without the weights; what is inferred stays open."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError:
        return ReadGraph(file)
    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except (DecodeError, OSError):
        return ReadGraph(file, fault="it is no ONNX file")
    weights = {each.name for each in graph.initializer}
    inputs = {each.name: _tensor(each) for each in graph.input}
    return ReadGraph(
        file,
        ort_graph.Graph(
            {name: each for name, each in inputs.items() if name not in weights},
            {name: each for name, each in inputs.items() if name in weights},
            {each.name: _tensor(each) for each in graph.output},
        ),
    )


def _tensor(value: Any) -> ort_graph.GraphTensor:
    tensor = value.type.tensor_type
    axes = tuple(
        int(dim.dim_value) if dim.HasField("dim_value") else (dim.dim_param or None)
        for dim in tensor.shape.dim
    )
    kind = value.type.WhichOneof("value")
    fallback = kind if kind != "tensor_type" else f"tensor({tensor.elem_type})"
    return ort_graph.GraphTensor(
        value.name, _ELEMENT_TYPES.get(tensor.elem_type, str(fallback)), axes
    )
