"""TensorRT's optimisation profiles from what a spec says: plain arithmetic, no TensorRT.

    profiles(spec.inputs, batch_sizes(64), (16, 32))
        batch 1..64 (8 usual), lengths 1..16 (16 usual); the same batch, lengths 17..32 (32 usual)

A profile bounds every input's shape, and TensorRT chooses its kernels for the usual one. A length
bucket is a profile of its own, since texts are padded to just that length; together they leave no
length out, because the proof (and a client that comes past the tokeniser) asks odd ones too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from modelspec.model import ModelSpec, TensorSpec

Dims = tuple[int, ...]
# What TensorRT takes as an input or gives as an output; it has no texts and no FP64.
CARRIED = ("FP32", "FP16", "INT8", "INT32", "INT64", "BOOL", "UINT8")
# Kernels are chosen for this batch: with 32 clients, Triton's batcher merges about so many.
USUAL_BATCH = 8
# TensorRT counts a tensor's elements in 31 bits in many of its kernels.
MOST_ELEMENTS = 2**31 - 1


@dataclass(frozen=True)
class ShapeRange:
    """The shapes of one input, batch axis first: ``least`` and ``most`` bound it, ``usual`` is what
    kernels are chosen for. ValueError when they are not in that order."""

    least: Dims
    usual: Dims
    most: Dims

    def __post_init__(self) -> None:
        axes = tuple(zip(self.least, self.usual, self.most, strict=False))
        ranks = {len(self.least), len(self.usual), len(self.most)}
        if len(ranks) > 1 or not all(1 <= low <= mid <= high for low, mid, high in axes):
            raise ValueError(
                f"no range of shapes: least {self.least}, usual {self.usual}, most {self.most}"
            )

    def holds(self, shape: Sequence[int]) -> bool:
        bounds = zip(self.least, shape, self.most, strict=False)
        return len(shape) == len(self.least) and all(low <= n <= high for low, n, high in bounds)


Profile = Mapping[str, ShapeRange]


def batch_sizes(max_batch_size: int, usual: int = USUAL_BATCH) -> Dims:
    """(1, usual, most) of a model's batch; ValueError for one without a batch axis."""
    if max_batch_size < 1 or usual < 1:
        raise ValueError(
            f"a profile needs batches of 1 or more, not {usual} of at most {max_batch_size}"
        )
    return 1, min(usual, max_batch_size), max_batch_size


def profiles(
    inputs: Sequence[TensorSpec], batch: Dims, lengths: Sequence[int] = ()
) -> tuple[Profile, ...]:
    """One profile for each of ``lengths`` (ascending; what -1 axes are padded to), or one alone
    where every axis but the batch's is fixed. ValueError says what makes no sense."""
    _require_sense(inputs, lengths)
    spans = [(1, 1, 1)]
    if lengths:
        starts = [1, *(length + 1 for length in lengths[:-1])]
        spans = [(low, high, high) for low, high in zip(starts, lengths, strict=True)]
    found = tuple({tensor.name: _range(tensor, batch, span) for tensor in inputs} for span in spans)
    for name, each in found[-1].items():
        if prod(each.most) > MOST_ELEMENTS:
            raise ValueError(f"input {name!r} could be {each.most}: over {MOST_ELEMENTS} elements")
    return found


def profiles_of(spec: ModelSpec) -> tuple[Profile, ...]:
    """The profiles of a declared engine; ValueError where it can have none."""
    return profiles(spec.inputs, batch_sizes(spec.max_batch_size), spec.lengths)


def profile_for(found: Sequence[Profile], shapes: Mapping[str, Sequence[int]]) -> int:
    """Which profile holds these inputs; ValueError when none does."""
    for place, profile in enumerate(found):
        if all(name in profile and profile[name].holds(shapes[name]) for name in shapes):
            return place
    asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    most = ", ".join(f"{name} {list(each.most)}" for name, each in found[-1].items())
    raise ValueError(f"no profile holds {asked}: the largest is {most}")


def _require_sense(inputs: Sequence[TensorSpec], lengths: Sequence[int]) -> None:
    if not inputs:
        raise ValueError("a model without inputs has no profiles")
    if len({tensor.name for tensor in inputs}) < len(inputs):
        raise ValueError(f"an input is named twice: {[tensor.name for tensor in inputs]}")
    for tensor in inputs:
        if tensor.dtype not in CARRIED:
            raise ValueError(
                f"input {tensor.name!r} is {tensor.dtype}, and TensorRT takes {', '.join(CARRIED)}"
            )
    if any(low >= high for low, high in zip((0, *lengths), lengths, strict=False)):
        raise ValueError(f"lengths must be positive and ascend: {list(lengths)}")
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
