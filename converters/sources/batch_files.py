"""Batches of rows in one ``.npz``, for the reference programs and for a Reference."""

from collections.abc import Mapping, Sequence

import numpy as np


def pack_batches(groups: Sequence[Mapping[str, np.ndarray]], prefix: str) -> dict[str, np.ndarray]:
    """Numbered arrays, and an array of their names, since a tensor's name may be any text."""
    names = list(groups[0]) if groups else []
    arrays = {
        f"{prefix}{group_index}.{index}": group[name]
        for group_index, group in enumerate(groups)
        for index, name in enumerate(names)
    }
    return {**arrays, f"{prefix}names": np.array(names, dtype=np.str_)}


def unpack_batches(arrays: Mapping[str, np.ndarray], prefix: str) -> list[dict[str, np.ndarray]]:
    """The groups that ``pack_batches`` packed under this prefix."""
    names = [str(name) for name in arrays[f"{prefix}names"]]
    groups: list[dict[str, np.ndarray]] = []
    if not names:
        return groups
    while f"{prefix}{len(groups)}.0" in arrays:
        group_index = len(groups)
        groups.append(
            {name: arrays[f"{prefix}{group_index}.{index}"] for index, name in enumerate(names)}
        )
    return groups
