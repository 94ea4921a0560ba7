"""Tensors and batching of one config."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from serving.lint.finding import Finding, error, warning
from serving.lint.reading import Model

_INVALID = 0  # DataType.TYPE_INVALID: the field was not written


def check(model: Model) -> Iterator[Finding]:
    for kind, tensors in (("input", model.config.input), ("output", model.config.output)):
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
    yield from _batching(model)


def _tensor(model: Model, kind: str, tensor: Any) -> Iterator[Finding]:
    place = f"{model.place}:{tensor.name or kind}"
    if not tensor.name:
        yield error("tensor-nameless", place, f"an {kind} has no name", "name it as the model does")
    if tensor.data_type == _INVALID:
        yield error("type-missing", place, "has no data_type", "write it, such as TYPE_FP32")
    if not tensor.dims:
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
    yield from _reshape(place, tensor)


def _reshape(place: str, tensor: Any) -> Iterator[Finding]:
    if not tensor.HasField("reshape") or -1 in (*tensor.dims, *tensor.reshape.shape):
        return
    if _product(tensor.dims) != _product(tensor.reshape.shape):
        yield error(
            "reshape-differs",
            place,
            f"dims {list(tensor.dims)} and reshape {list(tensor.reshape.shape)} hold different "
            "numbers of elements",
            "make the products equal",
        )


def _batching(model: Model) -> Iterator[Finding]:
    config = model.config
    if model.is_ensemble:
        return
    tensors = [*config.input, *config.output]
    batched = config.max_batch_size > 0
    if not batched and config.HasField("dynamic_batching"):
        yield warning(
            "batching-without-batch",
            model.place,
            "asks for dynamic_batching, and max_batch_size is 0: nothing is ever merged",
            "set max_batch_size to what the model takes, and leave the batch axis out of dims",
        )
    elif not batched and len(tensors) > 1 and all(_leads_open(each) for each in tensors):
        yield warning(
            "batch-axis-in-dims",
            model.place,
            "every tensor begins with -1 and max_batch_size is 0: if that axis is the batch, "
            "Triton does not merge requests",
            "set max_batch_size and take the first -1 out of all dims, unless it is no batch",
        )
    for size in config.dynamic_batching.preferred_batch_size:
        if batched and size > config.max_batch_size:
            yield error(
                "preferred-too-large",
                model.place,
                f"preferred_batch_size {size} is above max_batch_size {config.max_batch_size}",
                "raise the one or lower the other",
            )


def _leads_open(tensor: Any) -> bool:
    return len(tensor.dims) > 0 and tensor.dims[0] == -1


def _product(dims: Any) -> int:
    product = 1
    for dim in dims:
        product *= dim
    return product
