"""scikit-learn follows the node numbers of a tree without looking: a file that lies about them
would make it read memory that is not its own. So they are looked at here, before anything is asked.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

DEPTH = 12
# Node and index arrays: these classes trust them.
NEIGHBOUR_TREES = ("KDTree", "BallTree", "KDTree32", "KDTree64", "BallTree32", "BallTree64")


def first_lie(model: Any) -> str:
    """The first part of a fitted model whose node numbers point outside it; '' if there is none."""
    return next((type(part).__name__ for part in _parts(model, DEPTH) if not _is_sound(part)), "")


def _parts(part: Any, depth: int) -> Iterator[Any]:
    """The trees in a model, wherever they are."""
    name = type(part).__name__
    if name in ("Tree", "TreePredictor", *NEIGHBOUR_TREES):
        yield part
    elif depth and isinstance(part, list | tuple | dict):
        for each in part.values() if isinstance(part, dict) else part:
            yield from _parts(each, depth - 1)
    elif depth and isinstance(part, np.ndarray) and part.dtype == object:
        for each in part.ravel():
            yield from _parts(each, depth - 1)
    elif depth and type(part).__module__.startswith("sklearn.") and hasattr(part, "__dict__"):
        for each in vars(part).values():
            yield from _parts(each, depth - 1)


def _is_sound(part: Any) -> bool:
    match type(part).__name__:
        case "Tree":
            children = part.children_left, part.children_right
            return _leads_down(*children, part.feature, part.n_features)
        case "TreePredictor":
            nodes = part.nodes
            leaf = nodes["is_leaf"].astype(bool)
            left, right = (np.where(leaf, -1, nodes[k].astype(np.int64)) for k in ("left", "right"))
            cats = len(part.raw_left_cat_bitsets)
            in_cats = not nodes["is_categorical"].any() or int(nodes["bitset_idx"].max()) < cats
            # How many features there are, only the model knows: its own check of the rows counts.
            return in_cats and _leads_down(left, right, nodes["feature_idx"], 2**31)
    return _neighbours_sound(part)


def _leads_down(yes: np.ndarray, no: np.ndarray, feature: np.ndarray, features: int) -> bool:
    """Every inner node leads to two later ones and reads a feature that is there: no way leads
    round, and none leads out."""
    here = np.arange(len(yes))
    inner = (yes != -1) | (no != -1)
    if not len(yes):
        return False
    down = all(((side > here) & (side < len(here)))[inner].all() for side in (yes, no))
    read = feature[inner]
    return bool(down and ((read >= 0) & (read < features)).all())


def _neighbours_sound(part: Any) -> bool:
    data, positions, nodes, _ = map(np.asarray, part.get_arrays())
    ends = nodes["idx_start"], nodes["idx_end"]
    inside = all(((end >= 0) & (end <= len(data))).all() for end in ends)
    return bool(inside and ((positions >= 0) & (positions < len(data))).all())
