"""Tensor elements as the V2 protocol's raw bytes: little-endian, each BYTES element preceded by its
length in 4 bytes."""

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from modelspec.dtypes import NUMERIC_TYPES

_LENGTH = struct.Struct("<I")


def encode(dtype: str, values: Sequence[Any]) -> bytes:
    """Flat values as raw bytes. TypeError or ValueError for a value that the dtype cannot hold: no
    value is cut to an integer or wraps around."""
    if dtype == "BYTES":
        texts = [value.encode() if isinstance(value, str) else value for value in values]
        if not all(isinstance(text, bytes) for text in texts):
            raise TypeError("BYTES are texts or bytes, not numbers")
        return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))
    if dtype not in NUMERIC_TYPES:
        raise ValueError(f"there are no values of the type {dtype}")
    element_type = NUMERIC_TYPES[dtype].newbyteorder("<")
    if element_type.kind == "b":
        if not all(isinstance(value, bool) for value in values):
            raise TypeError("BOOL is true or false")
        return np.array(values, dtype=element_type).tobytes()
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise TypeError(f"{dtype} is a number")
    if element_type.kind == "f":
        return _floats(dtype, values, element_type).tobytes()
    if any(isinstance(value, float) and not value.is_integer() for value in values):
        raise ValueError(f"{dtype} is a whole number")
    limits, whole = np.iinfo(element_type), [int(value) for value in values]
    if not all(limits.min <= number <= limits.max for number in whole):
        raise ValueError(f"a value does not fit {dtype}")
    return np.array(whole, dtype=element_type).tobytes()


def _floats(dtype: str, values: Sequence[Any], element_type: np.dtype) -> np.ndarray:
    try:
        floats = np.array(values, dtype=np.float64)
    except OverflowError:
        raise ValueError(f"a value does not fit {dtype}") from None
    finite = floats[np.isfinite(floats)]
    if finite.size and np.abs(finite).max() > np.finfo(element_type).max:
        raise ValueError(f"a value does not fit {dtype}")
    return floats.astype(element_type)


def decode(dtype: str, raw: bytes) -> np.ndarray:
    """Raw bytes as a flat array; BYTES become an object array of ``bytes``. ValueError if they are
    cut off, or of a dtype that numpy does not have."""
    if dtype in NUMERIC_TYPES:
        return np.frombuffer(raw, dtype=NUMERIC_TYPES[dtype])
    if dtype != "BYTES":
        raise ValueError(f"numpy has no type {dtype}")
    values, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise ValueError("the BYTES data is cut off")
        end = at + 4 + _LENGTH.unpack_from(raw, at)[0]
        if end > len(raw):
            raise ValueError("the BYTES data is cut off")
        values.append(raw[at + 4 : end])
        at = end
    texts = np.empty(len(values), dtype=object)
    texts[:] = values
    return texts


def filled(dims: Sequence[int], count: int) -> tuple[int, ...]:
    """The dims with their one open axis (-1) filled in for this many elements; ValueError if they
    do not fill the shape."""
    fixed = math.prod(dim for dim in dims if dim != -1)
    shape = tuple(count // fixed if dim == -1 else dim for dim in dims) if fixed else tuple(dims)
    if list(dims).count(-1) > 1 or math.prod(shape) != count:
        raise ValueError(f"{count} values do not fill the shape {list(dims)}")
    return shape
