"""The inputs of an ONNX graph as TensorSpecs: the file is the authority on ranks and types."""

from pathlib import Path

import onnx
from onnx import TensorProto

from converters.errors import SourceMissing, SourceRefused
from modelspec.dtypes import ONNX_NUMBERS
from modelspec.model import TensorSpec


def read_inputs(path: Path) -> tuple[TensorSpec, ...]:
    """The graph's inputs without their batch axis; SourceMissing or SourceRefused."""
    if not path.is_file():
        raise SourceMissing(f"there is no file {path}")
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's error has no public class
        raise SourceRefused(f"{path} is not an ONNX file: {error}") from error
    external = [t.name for t in graph.initializer if t.data_location == TensorProto.EXTERNAL]
    if external:
        raise SourceRefused(
            f"{path} stores {external[0]!r} in another file: save the model as a single file "
            "(onnx.save does, up to 2 GiB), so that the graph beside the engine is complete"
        )
    constants = {tensor.name for tensor in graph.initializer}
    return tuple(_spec(value, path) for value in graph.input if value.name not in constants)


def _spec(value: onnx.ValueInfoProto, path: Path) -> TensorSpec:
    tensor = value.type.tensor_type
    dims = [axis.dim_value or -1 for axis in tensor.shape.dim]
    dtype = TensorProto.DataType.Name(tensor.elem_type)
    if tensor.elem_type not in ONNX_NUMBERS:
        raise SourceRefused(
            f"{path}: input {value.name!r} is {dtype}, which TensorRT does not support"
        )
    if not dims or dims[0] != -1:
        raise SourceRefused(
            f"{path}: input {value.name!r} has no dynamic batch axis ({dims}): export it with one"
        )
    return TensorSpec(value.name, ONNX_NUMBERS[tensor.elem_type], tuple(dims[1:]))
