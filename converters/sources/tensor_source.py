"""What a model of plain tensors must be able to do, wherever it comes from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import SourceRefused

# Rows of one shape: each input's array [n, *dims].
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
    """An input or output. ``dims`` leave the batch axis out; -1 is an axis of any length, and axes
    of one name in ``axes`` have one length. ``flat``: the graph has no axis but the batch's."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    axes: tuple[str, ...] = ()
    flat: bool = False

    @property
    def public_dims(self) -> tuple[int, ...]:
        """As Triton shows it, which wants an axis beside the batch's."""
        return self.dims or (1,)

    def metadata(self) -> dict[str, Any]:
        """What the pipeline is declared with."""
        return {**asdict(self), "dims": list(self.dims), "axes": list(self.axes)}

    @classmethod
    def from_facts(cls, metadata: Mapping[str, Any]) -> "TensorInfo":
        """What ``metadata`` gave."""
        return cls(**{**metadata, "dims": tuple(metadata["dims"]), "axes": tuple(metadata["axes"])})


@dataclass(frozen=True)
class ReferenceOutputs:
    """What an oracle said: for each group each output's array, and which oracle it was; ``noise``
    is what FP32 rounds off of each element of each output FP32 (``closeness.noise_of``)."""

    outputs: Sequence[Group]
    oracle: str
    noise: Sequence[Group]


class TensorSource(ABC):
    """A model opened and checked: SourceMissing or SourceRefused said what was wrong."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that decide its answers."""

    def settings(self) -> str:
        """Whatever else does."""
        return ""

    @abstractmethod
    def example(self) -> Group | None:
        """Inputs that its author gave, if any."""

    def computes_in_half(self) -> bool:
        """Whether the graph computes in FP16 as it is, whatever its inputs and outputs are."""
        return False

    def ids(self) -> Mapping[str, np.ndarray]:
        """For each input whose whole numbers have a limit (the rows of an embedding, categories):
        how many there are, as ``converters.tensors.ids.id_counts`` gives them."""
        return {}

    def eager(self) -> Callable[[Group], object] | None:
        """The original in its own framework; None where ONNX is all that it is."""
        return None

    @abstractmethod
    def write(self, target: Path) -> None:
        """Write the graph, one file."""

    @abstractmethod
    def ask(self, groups: Sequence[Group], folder: Path) -> ReferenceOutputs:
        """The original's answers, one row at a time, in a process of its own."""


def require_servable(ports: Sequence[TensorInfo], side: str) -> None:
    """SourceRefused for tensors that no REST client could send or read."""
    for port in ports:
        if side == "input" and port.dtype == "FP16":
            raise SourceRefused(
                f"input {port.name!r} is FP16, which JSON clients cannot send: cast it inside the "
                "model, from FP32"
            )
        if side == "input" and port.dims.count(-1) > 1:
            raise SourceRefused(
                f"input {port.name!r} has {port.dims.count(-1)} axes of any length beside the "
                "batch: fix all but one when you export it"
            )
        if any(dim == 0 for dim in port.dims):
            raise SourceRefused(
                f"{side} {port.name!r} has an axis of length 0: export it otherwise"
            )
