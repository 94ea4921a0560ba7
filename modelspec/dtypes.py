"""One table of element types: the V2 protocol's name, Triton's, numpy's and ONNX's.

Source: the Open Inference Protocol's data types, ``DataType`` in Triton's model_config.proto, and
``TensorProto.DataType`` in onnx.proto.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ElementType:
    """``name`` is the V2 protocol's, ``config_name`` and ``config_number`` Triton's, ``onnx_name``
    ONNX Runtime's and ``onnx_number`` that of ONNX files.

    ``numpy`` is None for BF16, which numpy does not have; ``size_bytes`` is None for BYTES, whose
    elements have no fixed size.
    """

    name: str
    config_name: str
    config_number: int
    numpy: np.dtype | None
    size_bytes: int | None
    onnx_name: str
    onnx_number: int


def _fixed(
    name: str, config_number: int, numpy_name: str, onnx_name: str, onnx_number: int
) -> ElementType:
    dtype = np.dtype(numpy_name)
    return ElementType(
        name,
        f"TYPE_{name}",
        config_number,
        dtype,
        dtype.itemsize,
        f"tensor({onnx_name})",
        onnx_number,
    )


_TABLE = (
    _fixed("BOOL", 1, "bool", "bool", 9),
    _fixed("INT8", 6, "int8", "int8", 3),
    _fixed("INT16", 7, "int16", "int16", 5),
    _fixed("INT32", 8, "int32", "int32", 6),
    _fixed("INT64", 9, "int64", "int64", 7),
    _fixed("UINT8", 2, "uint8", "uint8", 2),
    _fixed("UINT16", 3, "uint16", "uint16", 4),
    _fixed("UINT32", 4, "uint32", "uint32", 12),
    _fixed("UINT64", 5, "uint64", "uint64", 13),
    _fixed("FP16", 10, "float16", "float16", 10),
    _fixed("FP32", 11, "float32", "float", 1),
    _fixed("FP64", 12, "float64", "double", 11),
    ElementType("BF16", "TYPE_BF16", 14, None, 2, "tensor(bfloat16)", 16),
    ElementType("BYTES", "TYPE_STRING", 13, np.dtype(object), None, "tensor(string)", 8),
)

ELEMENT_TYPES: dict[str, ElementType] = {entry.name: entry for entry in _TABLE}
# The types whose elements numpy holds by value.
NUMERIC_TYPES: dict[str, np.dtype] = {
    entry.name: entry.numpy for entry in _TABLE if entry.numpy is not None and entry.size_bytes
}
SIZE_BYTES: dict[str, int] = {entry.name: entry.size_bytes for entry in _TABLE if entry.size_bytes}
# What a declared model may have, by ONNX's name and number.
ONNX_NAMES: dict[str, str] = {entry.onnx_name: entry.name for entry in _TABLE if entry.numpy}
ONNX_NUMBERS: dict[int, str] = {entry.onnx_number: entry.name for entry in _TABLE if entry.numpy}
_BY_CONFIG_NUMBER = {entry.config_number: entry.name for entry in _TABLE}


def element_type(name: str) -> ElementType:
    """The element type with this V2 name; ValueError lists the names there are."""
    try:
        return ELEMENT_TYPES[name]
    except KeyError:
        known = ", ".join(ELEMENT_TYPES)
        raise ValueError(f"unknown dtype {name!r}: use one of {known}") from None


def protocol_name(config_number: int) -> str:
    """The V2 name of a ``data_type`` in a ModelConfig; INVALID where there is none."""
    return _BY_CONFIG_NUMBER.get(config_number, "INVALID")
