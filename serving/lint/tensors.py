"""The tensors of one config: names, types, dims, reshapes, and what batching adds to them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from tritonclient.grpc.model_config_pb2 import BatchInput, DataType, ModelInput

from serving.lint.finding import Finding, error, one_of, warning
from serving.lint.reading import Model

_INVALID = 0  # DataType.TYPE_INVALID: the field was not written
_TENSORRT = "tensorrt_plan"
_PICTURES = (ModelInput.FORMAT_NHWC, ModelInput.FORMAT_NCHW)
_COUNTS = (DataType.TYPE_INT32, DataType.TYPE_FP32)


def check(model: Model) -> Iterator[Finding]:
    config = model.completed
    for kind, tensors in (("input", config.input), ("output", config.output)):
        counts = Counter(tensor.name for tensor in tensors)
        for name in (name for name, count in counts.items() if count > 1):
            yield warning(
                "tensor-twice",
                f"{model.place}:{name}",
                f"is declared twice as {kind}",
                "once is it",
            )
        for tensor in tensors:
            yield from _tensor(model, kind, tensor)
    yield from _batch_inputs(model)
    yield from _batch_outputs(model)


def _tensor(model: Model, kind: str, tensor: Any) -> Iterator[Finding]:
    place = f"{model.place}:{tensor.name or kind}"
    if not tensor.name:
        yield error("tensor-nameless", place, f"an {kind} has no name", "name it as the model does")
    if tensor.data_type == _INVALID and not model.may_complete:
        yield error("type-missing", place, "has no data_type", "write it, such as TYPE_FP32")
    if not tensor.dims and not model.may_complete:
        batched = model.config.max_batch_size > 0
        yield error(
            "dims-empty",
            place,
            "has no dims: Triton has no shape []" + (" beside the batch axis" if batched else ""),
            "write dims: [ 1 ], and reshape { shape: [ ] } if the model wants one axis less",
        )
    bad = [dim for dim in tensor.dims if dim == 0 or dim < -1]
    if bad:
        yield error(
            "dims-bad", place, f"has the dim {bad[0]}", "use -1 for any length, or 1 or more"
        )
    if tensor.HasField("reshape") and tensor.dims and not bad:
        yield from _reshape(model, place, tensor)
    yield from _layout(model, kind, place, tensor)


def _reshape(model: Model, place: str, tensor: Any) -> Iterator[Finding]:
    dims, shape = list(tensor.dims), list(tensor.reshape.shape)
    bad = [dim for dim in shape if dim == 0 or dim < -1]
    if bad:
        yield error(
            "reshape-differs",
            place,
            f"has the dim {bad[0]} in its reshape",
            "use -1 for any length, or 1 or more",
        )
    elif not shape and model.completed.max_batch_size == 0:
        yield error(
            "reshape-differs",
            place,
            "has an empty reshape and max_batch_size 0, so that nothing would be left",
            "write the shape that the model wants, or take reshape out",
        )
    elif _blocks(dims) != _blocks(shape):
        yield error(
            "reshape-differs",
            place,
            f"dims {dims} and reshape {shape} hold different numbers of elements"
            + (" (between the axes of -1)" if -1 in (*dims, *shape) else ""),
            "make the products equal, with as many -1 in the one as in the other",
        )


def _blocks(shape: Sequence[int]) -> list[int]:
    """The products of what stands before, between and after the open axes."""
    products = [1]
    for dim in shape:
        if dim == -1:
            products.append(1)
        else:
            products[-1] *= dim
    return products


def _layout(model: Model, kind: str, place: str, tensor: Any) -> Iterator[Finding]:
    if kind == "input" and tensor.format in _PICTURES and len(tensor.dims) != 3:
        yield error(
            "format-dims",
            place,
            f"is {ModelInput.Format.Name(tensor.format)}, which wants 3 dims, and has "
            f"{len(tensor.dims)}",
            "write 3 dims, or take format out (it changes nothing in the model)",
        )
    if model.settled.platform == _TENSORRT:
        if tensor.is_non_linear_format_io and len(tensor.dims) != 3:
            yield error("format-dims", place, "is_non_linear_format_io wants 3 dims", "write 3")
        return
    for field in ("is_shape_tensor", "is_non_linear_format_io"):
        if getattr(tensor, field):
            yield error(
                "tensorrt-only",
                place,
                f"says {field}, which only TensorRT plans have",
                "take it out",
            )


def _batch_inputs(model: Model) -> Iterator[Finding]:
    inputs = {tensor.name for tensor in model.completed.input}
    for each in model.config.batch_input:
        place = f"{model.place}:batch_input {', '.join(each.target_name)}".rstrip()
        if each.data_type not in _COUNTS:
            yield error(
                "batch-tensor",
                place,
                "is neither TYPE_INT32 nor TYPE_FP32",
                "write data_type: TYPE_INT32",
            )
        if each.kind not in BatchInput.Kind.values():
            yield error("batch-tensor", place, f"has no kind {each.kind}", "write its name")
        yield from _sources(place, each, inputs)


def _batch_outputs(model: Model) -> Iterator[Finding]:
    inputs = {tensor.name for tensor in model.completed.input}
    outputs = {tensor.name for tensor in model.completed.output}
    for each in model.config.batch_output:
        place = f"{model.place}:batch_output {', '.join(each.target_name)}".rstrip()
        yield from _sources(place, each, inputs)
        for name in sorted(set(each.target_name) - outputs):
            yield error("batch-tensor", place, f"scatters to no output {name!r}", one_of(outputs))
        twice = [name for name, group in groupby(sorted(each.target_name)) if len([*group]) > 1]
        if twice:
            yield error("batch-tensor", place, f"names {twice[0]!r} twice", "name it once")
        if not each.target_name:
            yield error(
                "batch-tensor",
                place,
                "names no target, and Triton ends when it loads that",
                "write target_name",
            )


def _sources(place: str, each: Any, inputs: set[str]) -> Iterator[Finding]:
    if len(each.source_input) != 1:
        yield error(
            "batch-tensor",
            place,
            f"has {len(each.source_input)} source inputs, and Triton wants one",
            "write one source_input",
        )
    for name in sorted(set(each.source_input) - inputs):
        yield error("batch-tensor", place, f"counts no input {name!r}", one_of(inputs))
