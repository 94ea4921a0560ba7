"""Files of raw elements, the format of warm-up samples and initial states."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import DataType

_BYTES = {
    **dict.fromkeys(("TYPE_BOOL", "TYPE_UINT8", "TYPE_INT8"), 1),
    **dict.fromkeys(("TYPE_UINT16", "TYPE_INT16", "TYPE_FP16", "TYPE_BF16"), 2),
    **dict.fromkeys(("TYPE_UINT32", "TYPE_INT32", "TYPE_FP32"), 4),
    **dict.fromkeys(("TYPE_UINT64", "TYPE_INT64", "TYPE_FP64"), 8),
}


def file_fault(file: Path, data_type: int, dims: Sequence[int]) -> str:
    """Why Triton cannot fill a tensor of that type and shape from the file; '' if it can."""
    if not file.is_file():
        return "does not exist"
    name = DataType.Name(data_type) if data_type in DataType.values() else ""
    if name == "TYPE_STRING" or -1 in dims:
        return ""
    expected, actual = prod(dims) * _BYTES.get(name, 4), file.stat().st_size
    return f"has {actual} of {expected} bytes" if actual < expected else ""
