"""One table of element types: the V2 protocol's name, Triton's config name, numpy's dtype.

Source: the Open Inference Protocol's data types, and ``DataType`` in Triton's model_config.proto.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ElementType:
    """``size_bytes`` is None for BYTES, whose elements have no fixed size."""

    name: str
    config_name: str
    numpy: np.dtype | None
    size_bytes: int | None


def _fixed(name: str, numpy_name: str) -> ElementType:
    dtype = np.dtype(numpy_name)
    return ElementType(name, f"TYPE_{name}", dtype, dtype.itemsize)


_NUMPY_NAMES = {
    "BOOL": "bool",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}

ELEMENT_TYPES: dict[str, ElementType] = {
    **{name: _fixed(name, numpy_name) for name, numpy_name in _NUMPY_NAMES.items()},
    "BYTES": ElementType("BYTES", "TYPE_STRING", np.dtype(object), None),
}


def element_type(name: str) -> ElementType:
    """The element type with this V2 name; ValueError lists the names there are."""
    try:
        return ELEMENT_TYPES[name]
    except KeyError:
        known = ", ".join(ELEMENT_TYPES)
        raise ValueError(f"unknown dtype {name!r}: use one of {known}") from None
