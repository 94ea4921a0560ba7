"""Decision trees -> one ONNX node that decides exactly as the library does.

scikit-learn, XGBoost and LightGBM trees all arrive here as ``Tree``. Thresholds stay FP64: skl2onnx
and onnxmltools round them to FP32, and a value between a threshold and its rounding then goes the
other way.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

ML_DOMAIN, ML_OPSET = "ai.onnx.ml", 3


@dataclass(frozen=True)
class Tree:
    """One tree of n nodes; the root is node 0. ``yes`` and ``no`` INT [n] are the children, -1 at a
    leaf. A row goes to ``yes`` if its ``feature`` is on that side of the ``threshold`` FP64 [n]
    (``mode`` says how: BRANCH_LEQ, BRANCH_LT or BRANCH_EQ), or, where ``missing`` BOOL [n] is set,
    if it is NaN. ``value`` FP64 [n, width] is added to the targets from ``target`` on, at leaves
    only."""

    feature: np.ndarray
    threshold: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    missing: np.ndarray
    value: np.ndarray
    mode: Sequence[str]
    target: int = 0

    @property
    def leaves(self) -> np.ndarray:
        return self.yes < 0


def tree_attributes(trees: Sequence[Tree], targets: int) -> dict[str, object]:
    """The attributes of a ``TreeEnsembleRegressor`` (ai.onnx.ml 3), FP64 in, FP32 [n, targets] out:
    the sum over the trees."""
    rows = [row for index, tree in enumerate(trees) for row in _nodes(index, tree)]
    ids, nodes, features, modes, yes, no, missing, thresholds = zip(*rows, strict=True)
    leaves = [leaf for index, tree in enumerate(trees) for leaf in _leaves(index, tree)]
    leaf_trees, leaf_nodes, leaf_targets, weights = zip(*leaves, strict=True)
    return {
        "n_targets": targets,
        "aggregate_function": "SUM",
        "post_transform": "NONE",
        "nodes_treeids": ids,
        "nodes_nodeids": nodes,
        "nodes_featureids": features,
        "nodes_modes": modes,
        "nodes_truenodeids": yes,
        "nodes_falsenodeids": no,
        "nodes_missing_value_tracks_true": missing,
        "nodes_values_as_tensor": _doubles(thresholds, "thresholds"),
        "target_treeids": leaf_trees,
        "target_nodeids": leaf_nodes,
        "target_ids": leaf_targets,
        "target_weights_as_tensor": _doubles(weights, "weights"),
    }


def thresholds_by_feature(trees: Sequence[Tree], features: int) -> list[np.ndarray]:
    """The distinct thresholds of each of the first ``features`` features, ascending, FP64; later
    ones (sets of categories) are ignored."""
    thresholds: list[list[np.ndarray]] = [[] for _ in range(features)]
    for tree in trees:
        inner = ~tree.leaves
        for feature in np.unique(tree.feature[inner & (tree.feature < features)]):
            thresholds[feature].append(tree.threshold[inner & (tree.feature == feature)])
    return [np.unique(np.concatenate(parts)) if parts else np.empty(0) for parts in thresholds]


def _nodes(index: int, tree: Tree) -> Iterator[tuple[object, ...]]:
    for node in range(len(tree.yes)):
        if tree.yes[node] < 0:
            yield index, node, 0, "LEAF", 0, 0, 0, 0.0
        else:
            children = int(tree.yes[node]), int(tree.no[node])
            missing = int(tree.missing[node])
            feature, threshold = int(tree.feature[node]), float(tree.threshold[node])
            yield index, node, feature, tree.mode[node], *children, missing, threshold


def _leaves(index: int, tree: Tree) -> Iterator[tuple[int, int, int, float]]:
    for node in np.flatnonzero(tree.leaves):
        for offset, weight in enumerate(tree.value[node]):
            yield index, int(node), tree.target + offset, float(weight)


def _doubles(values: Sequence[float], name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.float64), name)
