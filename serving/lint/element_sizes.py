"""Files of raw elements, the format of warm-up samples and initial states."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

from modelspec.dtypes import SIZE_BYTES, protocol_name


def file_fault(file: Path, data_type: int, dims: Sequence[int]) -> str:
    """Why Triton cannot fill a tensor of that type and shape from the file; '' if it can."""
    if not file.is_file():
        return "does not exist"
    dtype = protocol_name(data_type)
    if dtype == "BYTES" or -1 in dims:
        return ""
    expected, actual = prod(dims) * SIZE_BYTES.get(dtype, 4), file.stat().st_size
    return f"has {actual} of {expected} bytes" if actual < expected else ""
