"""Rows for a graph of which only the inputs are known."""

from collections.abc import Sequence

import numpy as np

from converters.export.tensor_info import TensorInfo
from converters.sources.tensor_source import NUMPY_TYPES, Batch

ROWS = 24
LENGTHS = (1, 7, 16)  # of an axis of any length
SEED = 20240229


def made_up(inputs: Sequence[TensorInfo]) -> list[Batch]:
    """Rows for a graph of which only the inputs are known: normally distributed floats, integers 0
    and 1; a group for each of ``LENGTHS`` where an axis may have any length."""
    generator = np.random.default_rng(SEED)
    lengths = LENGTHS if any(-1 in tensor.dims for tensor in inputs) else LENGTHS[:1]
    return [
        {tensor.name: _made_up(tensor, length, generator) for tensor in inputs}
        for length in lengths
    ]


def _made_up(tensor: TensorInfo, length: int, generator: np.random.Generator) -> np.ndarray:
    shape = (ROWS, *(length if dim == -1 else dim for dim in tensor.dims))
    numpy_type = NUMPY_TYPES[tensor.dtype]
    if tensor.dtype == "BYTES":
        return generator.choice(np.array(["", "a", "b c", "größer", "高兴"]), shape)
    if np.dtype(numpy_type).kind == "f":
        # Rounded: one row is the golden sample, which is stored as JSON.
        return generator.standard_normal(shape).round(3).astype(numpy_type)
    return generator.integers(0, 1, shape, endpoint=True).astype(numpy_type)
