"""The interface of a model of plain tensors, wherever it comes from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import SourceRefused

# Rows of the same shape: each input's array [n, *dims].
Group = Mapping[str, np.ndarray]

NUMPY_TYPES: Mapping[str, type] = {
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.str_,
}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output. ``dims`` exclude the batch axis; -1 is an axis of any length, and axes
    with the same name in ``axes`` have the same length. ``flat``: the graph has no axis besides the
    batch's."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    axes: tuple[str, ...] = ()
    flat: bool = False

    @property
    def public_dims(self) -> tuple[int, ...]:
        """The dims as Triton declares them, which needs an axis besides the batch's."""
        return self.dims or (1,)

    def metadata(self) -> dict[str, Any]:
        """The fields as the pipeline's declaration holds them."""
        return {**asdict(self), "dims": list(self.dims), "axes": list(self.axes)}

    @classmethod
    def from_facts(cls, metadata: Mapping[str, Any]) -> "TensorInfo":
        """The inverse of ``metadata``."""
        return cls(**{**metadata, "dims": tuple(metadata["dims"]), "axes": tuple(metadata["axes"])})


@dataclass(frozen=True)
class ReferenceOutputs:
    """The original's outputs: for each group each output's array, and the ``oracle`` that computed
    them; ``noise`` is the FP32 rounding error of each element of each FP32 output
    (``closeness.noise_of``)."""

    outputs: Sequence[Group]
    oracle: str
    noise: Sequence[Group]


class TensorSource(ABC):
    """A model loaded and checked: SourceMissing or SourceRefused says what is wrong."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that determine its outputs."""

    def settings(self) -> str:
        """Anything else that determines them."""
        return ""

    @abstractmethod
    def example(self) -> Group | None:
        """Example inputs from its author, if any."""

    def computes_in_half(self) -> bool:
        """Whether the graph itself computes in FP16, whatever its inputs and outputs are."""
        return False

    def ids(self) -> Mapping[str, np.ndarray]:
        """For each integer input with a limit (the rows of an embedding, categories): the limit, as
        ``converters.sources.ids.id_counts`` gives it."""
        return {}

    def eager(self) -> Callable[[Group], object] | None:
        """The original in its own framework; None if it exists only in ONNX."""
        return None

    @abstractmethod
    def write(self, target: Path) -> None:
        """Write the graph as one file."""

    @abstractmethod
    def ask(self, groups: Sequence[Group], folder: Path) -> ReferenceOutputs:
        """The original's outputs, computed one row at a time in a separate process."""


def require_servable(tensors: Sequence[TensorInfo], side: str) -> None:
    """Raise SourceRefused for tensors that no REST client could send or read."""
    for tensor in tensors:
        if side == "input" and tensor.dtype == "FP16":
            raise SourceRefused(
                f"input {tensor.name!r} is FP16, which JSON clients cannot send: cast it inside "
                "the model, from FP32"
            )
        if side == "input" and tensor.dims.count(-1) > 1:
            raise SourceRefused(
                f"input {tensor.name!r} has {tensor.dims.count(-1)} axes of any length besides the "
                "batch: fix all but one when you export it"
            )
        if any(dim == 0 for dim in tensor.dims):
            raise SourceRefused(
                f"{side} {tensor.name!r} has an axis of length 0: export the model without it"
            )
