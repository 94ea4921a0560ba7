"""scikit-learn follows the node numbers of a tree unchecked: a file with invalid ones would make it
read memory outside the tree. So they are checked here, before the model is called."""

from collections.abc import Iterator
from typing import Any

import numpy as np

DEPTH = 12
# These classes trust their node and index arrays.
NEIGHBOUR_TREES = ("KDTree", "BallTree", "KDTree32", "KDTree64", "BallTree32", "BallTree64")


def first_invalid_part(model: Any) -> str:
    """The class name of the first part of a fitted model whose node numbers point outside it; '' if
    there is none."""
    return next((type(part).__name__ for part in _parts(model, DEPTH) if not _is_valid(part)), "")


def _parts(part: Any, depth: int) -> Iterator[Any]:
    """Yield the trees in a model, wherever they are."""
    name = type(part).__name__
    if name in ("Tree", "TreePredictor", *NEIGHBOUR_TREES):
        yield part
    elif depth and isinstance(part, list | tuple | dict):
        for item in part.values() if isinstance(part, dict) else part:
            yield from _parts(item, depth - 1)
    elif depth and isinstance(part, np.ndarray) and part.dtype == object:
        for item in part.ravel():
            yield from _parts(item, depth - 1)
    elif depth and type(part).__module__.startswith("sklearn.") and hasattr(part, "__dict__"):
        for attribute in vars(part).values():
            yield from _parts(attribute, depth - 1)


def _is_valid(part: Any) -> bool:
    match type(part).__name__:
        case "Tree":
            children = part.children_left, part.children_right
            return _is_acyclic(*children, part.feature, part.n_features)
        case "TreePredictor":
            nodes = part.nodes
            leaf = nodes["is_leaf"].astype(bool)
            left, right = (np.where(leaf, -1, nodes[k].astype(np.int64)) for k in ("left", "right"))
            set_count = len(part.raw_left_cat_bitsets)
            sets_exist = (
                not nodes["is_categorical"].any() or int(nodes["bitset_idx"].max()) < set_count
            )
            # Only the model knows how many features there are, and it checks the rows itself.
            return sets_exist and _is_acyclic(left, right, nodes["feature_idx"], 2**31)
    return _is_valid_neighbour_tree(part)


def _is_acyclic(yes: np.ndarray, no: np.ndarray, feature: np.ndarray, features: int) -> bool:
    """Whether every inner node leads to two later nodes of the tree and reads an existing feature,
    so that no path is a cycle or leaves the tree."""
    index = np.arange(len(yes))
    inner = (yes != -1) | (no != -1)
    if not len(yes):
        return False
    descends = all(((side > index) & (side < len(index)))[inner].all() for side in (yes, no))
    read_features = feature[inner]
    return bool(descends and ((read_features >= 0) & (read_features < features)).all())


def _is_valid_neighbour_tree(part: Any) -> bool:
    data, positions, nodes, _ = map(np.asarray, part.get_arrays())
    ends = nodes["idx_start"], nodes["idx_end"]
    inside = all(((end >= 0) & (end <= len(data))).all() for end in ends)
    return bool(inside and ((positions >= 0) & (positions < len(data))).all())
