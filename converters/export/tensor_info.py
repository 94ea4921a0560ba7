"""One input or output of a graph of plain tensors."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


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
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "TensorInfo":
        """The inverse of ``metadata``."""
        return cls(**{**metadata, "dims": tuple(metadata["dims"]), "axes": tuple(metadata["axes"])})
