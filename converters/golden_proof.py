"""Check a declared golden sample against the original framework's answer for it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from converters.proof import Check, worst_difference


def golden_checks(
    expect: Mapping[str, list[Any]], tolerance: float, original: Mapping[str, np.ndarray]
) -> list[Check]:
    """One check a tensor: the golden values are the first elements of the original's row."""
    checks = []
    for tensor, values in expect.items():
        wanted = np.asarray(values, dtype=np.float64)
        got = np.asarray(original[tensor], dtype=np.float64).reshape(-1)[: len(wanted)]
        name = f"golden sample: {tensor}"
        checks.append(worst_difference(name, wanted[None], got[None], tolerance, ["golden"]))
    return checks
