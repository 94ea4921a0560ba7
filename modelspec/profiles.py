"""TensorRT's optimisation profiles, computed from a spec: plain arithmetic, no TensorRT.

    profiles(spec.inputs, batch_sizes(64), (16, 32))
        batch 1..64 (8 usual), lengths 1..16 (16 usual); the same batch, lengths 17..32 (32 usual)

A profile bounds every input's shape, and TensorRT chooses its kernels for the usual one. Each
length bucket has its own profile, since texts are padded to exactly that length; together they
cover every length, because the proof (and a client that bypasses the tokenizer) sends others too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from modelspec.model import ModelSpec, TensorSpec

Dims = tuple[int, ...]
# The dtypes of TensorRT's inputs and outputs; it has no texts and no FP64.
TENSORRT_DTYPES = ("FP32", "FP16", "INT8", "INT32", "INT64", "BOOL", "UINT8")
# Kernels are chosen for this batch: with 32 clients, Triton's batcher merges about this many.
USUAL_BATCH = 8
# TensorRT counts a tensor's elements in 31 bits in many of its kernels.
ELEMENT_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class ShapeRange:
    """The shapes of one input, batch axis first: ``least`` and ``most`` bound it, and kernels are
    chosen for ``usual``. ValueError unless least <= usual <= most on every axis."""

    least: Dims
    usual: Dims
    most: Dims

    def __post_init__(self) -> None:
        axes = tuple(zip(self.least, self.usual, self.most, strict=False))
        ranks = {len(self.least), len(self.usual), len(self.most)}
        if len(ranks) > 1 or not all(1 <= low <= mid <= high for low, mid, high in axes):
            raise ValueError(
                f"not a range of shapes: least {self.least}, usual {self.usual}, most {self.most}"
            )

    def holds(self, shape: Sequence[int]) -> bool:
        bounds = zip(self.least, shape, self.most, strict=False)
        return len(shape) == len(self.least) and all(
            low <= length <= high for low, length, high in bounds
        )


Profile = Mapping[str, ShapeRange]


def batch_sizes(max_batch_size: int, usual: int = USUAL_BATCH) -> Dims:
    """The (least, usual, most) rows of a model's batch; ValueError without a batch axis."""
    if max_batch_size < 1 or usual < 1:
        raise ValueError(
            f"a profile needs batches of 1 or more, not {usual} of at most {max_batch_size}"
        )
    return 1, min(usual, max_batch_size), max_batch_size


def profiles(
    inputs: Sequence[TensorSpec], batch: Dims, lengths: Sequence[int] = ()
) -> tuple[Profile, ...]:
    """One profile for each of ``lengths`` (ascending; what -1 axes are padded to), or a single one
    where every axis but the batch's is fixed. ValueError says what is wrong with the arguments."""
    _check_inputs(inputs, lengths)
    spans = [(1, 1, 1)]
    if lengths:
        starts = [1, *(length + 1 for length in lengths[:-1])]
        spans = [(low, high, high) for low, high in zip(starts, lengths, strict=True)]
    result = tuple(
        {tensor.name: _range(tensor, batch, span) for tensor in inputs} for span in spans
    )
    for name, shape in result[-1].items():
        if prod(shape.most) > ELEMENT_LIMIT:
            raise ValueError(f"input {name!r} could be {shape.most}: over {ELEMENT_LIMIT} elements")
    return result


def profiles_of(spec: ModelSpec) -> tuple[Profile, ...]:
    """The profiles of a declared engine; ValueError where TensorRT cannot take it."""
    return profiles(spec.inputs, batch_sizes(spec.max_batch_size), spec.lengths)


def profile_for(candidates: Sequence[Profile], shapes: Mapping[str, Sequence[int]]) -> int:
    """The index of the first profile that holds these input shapes; ValueError when none does."""
    for index, profile in enumerate(candidates):
        if all(name in profile and profile[name].holds(shapes[name]) for name in shapes):
            return index
    requested = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    largest = ", ".join(f"{name} {list(shape.most)}" for name, shape in candidates[-1].items())
    raise ValueError(f"no profile holds {requested}: the largest is {largest}")


def _check_inputs(inputs: Sequence[TensorSpec], lengths: Sequence[int]) -> None:
    if not inputs:
        raise ValueError("a model without inputs has no profiles")
    if len({tensor.name for tensor in inputs}) < len(inputs):
        raise ValueError(f"an input is named twice: {[tensor.name for tensor in inputs]}")
    for tensor in inputs:
        if tensor.dtype not in TENSORRT_DTYPES:
            raise ValueError(
                f"input {tensor.name!r} is {tensor.dtype}, and TensorRT takes "
                f"{', '.join(TENSORRT_DTYPES)}"
            )
    if any(low >= high for low, high in zip((0, *lengths), lengths, strict=False)):
        raise ValueError(f"lengths must be positive and ascending: {list(lengths)}")
    open_inputs = [tensor.name for tensor in inputs if -1 in tensor.dims]
    if lengths and not open_inputs:
        raise ValueError(f"lengths {list(lengths)} for inputs whose axes are all fixed")
    if open_inputs and not lengths:
        raise ValueError(f"{', '.join(open_inputs)} may be of any length: say which (lengths)")


def _range(tensor: TensorSpec, batch: Dims, span: Dims) -> ShapeRange:
    least, usual, most = (
        (rows, *(length if dim == -1 else dim for dim in tensor.dims))
        for rows, length in zip(batch, span, strict=True)
    )
    return ShapeRange(least, usual, most)
