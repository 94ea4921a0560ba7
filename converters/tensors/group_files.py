"""Groups of rows as one ``.npz``, for the oracles' processes and for a Reference."""

from collections.abc import Mapping, Sequence

import numpy as np


def pack_groups(groups: Sequence[Mapping[str, np.ndarray]], prefix: str) -> dict[str, np.ndarray]:
    """Numbered arrays, and their names: any text may be a tensor's name."""
    names = list(groups[0]) if groups else []
    arrays = {
        f"{prefix}{place}.{index}": group[name]
        for place, group in enumerate(groups)
        for index, name in enumerate(names)
    }
    return {**arrays, f"{prefix}names": np.array(names, dtype=np.str_)}


def unpack_groups(arrays: Mapping[str, np.ndarray], prefix: str) -> list[dict[str, np.ndarray]]:
    """What ``pack_groups`` was given."""
    names = [str(name) for name in arrays[f"{prefix}names"]]
    groups: list[dict[str, np.ndarray]] = []
    if not names:
        return groups
    while f"{prefix}{len(groups)}.0" in arrays:
        place = len(groups)
        groups.append(
            {name: arrays[f"{prefix}{place}.{index}"] for index, name in enumerate(names)}
        )
    return groups
