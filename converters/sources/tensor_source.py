"""The interface of a model of plain tensors, wherever it comes from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import SourceRefused
from converters.export.tensor_info import TensorInfo
from converters.task import TorchModule
from modelspec.dtypes import NUMERIC_TYPES

# Rows of the same shape: each input's array [n, *dims].
Batch = Mapping[str, np.ndarray]

NUMPY_TYPES: Mapping[str, Any] = {**NUMERIC_TYPES, "BYTES": np.str_}


@dataclass(frozen=True)
class ReferenceOutputs:
    """The original's outputs: each output's array for each batch, and the ``executor`` that
    computed them; ``noise`` is the FP32 rounding error of each element of each FP32 output
    (``closeness.noise_of``)."""

    outputs: Sequence[Batch]
    executor: str
    noise: Sequence[Batch]


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

    def packages(self) -> tuple[str, ...]:
        """The installed packages whose versions may determine them, besides Tidegate's own
        tools."""
        return ()

    @abstractmethod
    def example(self) -> Batch | None:
        """Example inputs from its author, if any."""

    def computes_in_fp16(self) -> bool:
        """Whether the graph itself computes in FP16, whatever its inputs and outputs are."""
        return False

    def ids(self) -> Mapping[str, np.ndarray]:
        """For each integer input with a limit (the rows of an embedding, categories): the limit, as
        ``converters.sources.ids.id_counts`` gives it."""
        return {}

    def eager(self) -> Callable[[Batch], object] | None:
        """The original in its own framework; None if it exists only in ONNX."""
        return None

    def torch_module(self) -> TorchModule | None:
        """The original as a torch module; None if it exists only in ONNX."""
        return None

    @abstractmethod
    def write(self, target: Path) -> None:
        """Write the graph as one file."""


def to_feed(group: Batch) -> dict[str, np.ndarray]:
    """The group as ONNX Runtime takes it: texts as object arrays."""
    return {
        name: values.astype(object) if values.dtype.kind == "U" else values
        for name, values in group.items()
    }


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
