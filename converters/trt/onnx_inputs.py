"""What an ONNX graph takes, as TensorSpecs: the file is the truth about ranks and types."""

from pathlib import Path

import onnx
from onnx import TensorProto

from converters.errors import SourceMissing, SourceRefused
from modelspec.model import TensorSpec

DTYPES = {
    "FLOAT": "FP32",
    "FLOAT16": "FP16",
    "DOUBLE": "FP64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "BOOL": "BOOL",
    "STRING": "BYTES",
}


def read_inputs(path: Path) -> tuple[TensorSpec, ...]:
    """The graph's inputs, the batch axis left out; SourceMissing or SourceRefused."""
    if not path.is_file():
        raise SourceMissing(f"there is no file {path}")
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's error has no public class
        raise SourceRefused(f"{path} is no ONNX file: {error}") from error
    outside = [t.name for t in graph.initializer if t.data_location == TensorProto.EXTERNAL]
    if outside:
        raise SourceRefused(
            f"{path} keeps {outside[0]!r} in another file: save it as one (onnx.save does, up to "
            "2 GiB), so that what lies beside the engine is all of it"
        )
    constants = {tensor.name for tensor in graph.initializer}
    return tuple(_spec(each, path) for each in graph.input if each.name not in constants)


def _spec(value: onnx.ValueInfoProto, path: Path) -> TensorSpec:
    kind = value.type.tensor_type
    dims = [axis.dim_value or -1 for axis in kind.shape.dim]
    dtype = TensorProto.DataType.Name(kind.elem_type)
    if dtype not in DTYPES:
        raise SourceRefused(
            f"{path}: input {value.name!r} is {dtype}, which TensorRT does not take"
        )
    if not dims or dims[0] != -1:
        raise SourceRefused(
            f"{path}: input {value.name!r} has no dynamic batch axis ({dims}): export it with one"
        )
    return TensorSpec(value.name, DTYPES[dtype], tuple(dims[1:]))
