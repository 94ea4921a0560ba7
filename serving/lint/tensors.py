"""The tensors of one config: names, types, dims, reshapes, and what batching adds to them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from tritonclient.grpc.model_config_pb2 import (
    BatchInput,
    BatchOutput,
    DataType,
    ModelInput,
    ModelOutput,
)

from serving.lint.finding import Finding, error, one_of, warning
from serving.lint.reading import Model

_INVALID = 0  # DataType.TYPE_INVALID: the field was not written
_TENSORRT = "tensorrt_plan"
_IMAGE_FORMATS = (ModelInput.FORMAT_NHWC, ModelInput.FORMAT_NCHW)
_COUNT_TYPES = (DataType.TYPE_INT32, DataType.TYPE_FP32)


def check(model: Model) -> Iterator[Finding]:
    config = model.completed
    for side, tensors in (("input", config.input), ("output", config.output)):
        counts = Counter(tensor.name for tensor in tensors)
        for name in (name for name, count in counts.items() if count > 1):
            yield warning(
                "tensor-twice",
                f"{model.location}:{name}",
                f"is declared twice as {side}",
                "declare it once",
            )
        for tensor in tensors:
            yield from _tensor(model, side, tensor)
    yield from _batch_inputs(model)
    yield from _batch_outputs(model)


def _tensor(model: Model, side: str, tensor: ModelInput | ModelOutput) -> Iterator[Finding]:
    location = f"{model.location}:{tensor.name or side}"
    if not tensor.name:
        yield error(
            "tensor-nameless", location, f"an {side} has no name", "name it as the model does"
        )
    if tensor.data_type == _INVALID and not model.may_complete:
        yield error("type-missing", location, "has no data_type", "write it, such as TYPE_FP32")
    if not tensor.dims and not model.may_complete:
        batched = model.config.max_batch_size > 0
        yield error(
            "dims-empty",
            location,
            "has no dims: Triton has no shape []" + (" beside the batch axis" if batched else ""),
            "write dims: [ 1 ], and reshape { shape: [ ] } if the model takes one axis less",
        )
    invalid = [dim for dim in tensor.dims if dim == 0 or dim < -1]
    if invalid:
        yield error(
            "dims-bad", location, f"has the dim {invalid[0]}", "use -1 for any length, or 1 or more"
        )
    if tensor.HasField("reshape") and tensor.dims and not invalid:
        yield from _reshape(model, location, tensor)
    yield from _layout(model, side, location, tensor)


def _reshape(model: Model, location: str, tensor: ModelInput | ModelOutput) -> Iterator[Finding]:
    dims, shape = list(tensor.dims), list(tensor.reshape.shape)
    invalid = [dim for dim in shape if dim == 0 or dim < -1]
    if invalid:
        yield error(
            "reshape-differs",
            location,
            f"has the dim {invalid[0]} in its reshape",
            "use -1 for any length, or 1 or more",
        )
    elif not shape and model.completed.max_batch_size == 0:
        yield error(
            "reshape-differs",
            location,
            "has an empty reshape and max_batch_size 0, so no axis would remain",
            "write the shape that the model takes, or remove reshape",
        )
    elif _blocks(dims) != _blocks(shape):
        yield error(
            "reshape-differs",
            location,
            f"dims {dims} and reshape {shape} have different numbers of elements"
            + (" (between the -1 axes)" if -1 in (*dims, *shape) else ""),
            "make the products equal, with the same number of -1 in both",
        )


def _blocks(shape: Sequence[int]) -> list[int]:
    """The products of the dims before, between and after the open axes."""
    products = [1]
    for dim in shape:
        if dim == -1:
            products.append(1)
        else:
            products[-1] *= dim
    return products


def _layout(
    model: Model, side: str, location: str, tensor: ModelInput | ModelOutput
) -> Iterator[Finding]:
    if side == "input" and tensor.format in _IMAGE_FORMATS and len(tensor.dims) != 3:
        yield error(
            "format-dims",
            location,
            f"is {ModelInput.Format.Name(tensor.format)}, which needs 3 dims, but has "
            f"{len(tensor.dims)}",
            "write 3 dims, or remove format (it changes nothing in the model)",
        )
    if model.resolved.platform == _TENSORRT:
        if tensor.is_non_linear_format_io and len(tensor.dims) != 3:
            yield error("format-dims", location, "is_non_linear_format_io needs 3 dims", "write 3")
        return
    for field in ("is_shape_tensor", "is_non_linear_format_io"):
        if getattr(tensor, field):
            yield error(
                "tensorrt-only",
                location,
                f"says {field}, which only TensorRT plans have",
                "remove it",
            )


def _batch_inputs(model: Model) -> Iterator[Finding]:
    inputs = {tensor.name for tensor in model.completed.input}
    for batch_input in model.config.batch_input:
        location = f"{model.location}:batch_input {', '.join(batch_input.target_name)}".rstrip()
        if batch_input.data_type not in _COUNT_TYPES:
            yield error(
                "batch-tensor",
                location,
                "is neither TYPE_INT32 nor TYPE_FP32",
                "write data_type: TYPE_INT32",
            )
        if batch_input.kind not in BatchInput.Kind.values():
            yield error(
                "batch-tensor", location, f"has no kind {batch_input.kind}", "write its name"
            )
        yield from _sources(location, batch_input, inputs)


def _batch_outputs(model: Model) -> Iterator[Finding]:
    inputs = {tensor.name for tensor in model.completed.input}
    outputs = {tensor.name for tensor in model.completed.output}
    for batch_output in model.config.batch_output:
        location = f"{model.location}:batch_output {', '.join(batch_output.target_name)}".rstrip()
        yield from _sources(location, batch_output, inputs)
        for name in sorted(set(batch_output.target_name) - outputs):
            yield error(
                "batch-tensor", location, f"has an unknown target {name!r}", one_of(outputs)
            )
        duplicates = [
            name for name, group in groupby(sorted(batch_output.target_name)) if len([*group]) > 1
        ]
        if duplicates:
            yield error("batch-tensor", location, f"names {duplicates[0]!r} twice", "name it once")
        if not batch_output.target_name:
            yield error(
                "batch-tensor",
                location,
                "names no target, and Triton crashes when it loads that",
                "write target_name",
            )


def _sources(
    location: str, batch_tensor: BatchInput | BatchOutput, inputs: set[str]
) -> Iterator[Finding]:
    if len(batch_tensor.source_input) != 1:
        yield error(
            "batch-tensor",
            location,
            f"has {len(batch_tensor.source_input)} source inputs, but Triton needs exactly one",
            "write one source_input",
        )
    for name in sorted(set(batch_tensor.source_input) - inputs):
        yield error(
            "batch-tensor", location, f"has an unknown source input {name!r}", one_of(inputs)
        )
