"""scikit-learn's fitted trees as ``Tree``s, with the sums and links that turn them into a
prediction."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from converters.errors import SourceRefused
from converters.export.trees2onnx import Tree, thresholds_by_feature
from converters.sources.sklearn_boosters import booster_model, is_booster, require_no_categories
from converters.sources.sklearn_columns import MEMBER_MODELS, members_of
from converters.sources.xgboost_model import XgboostModel


@dataclass(frozen=True)
class TreeSum:
    """``link(start + sum of trees)``, with the link as in ``tree_parts``. ``narrow``: the library
    rounds its inputs to FP32 before it compares them. ``missing`` are numbers that it reads as NaN.
    ``slope``: the leaves contain this factor of the link.
    """

    trees: Sequence[Tree]
    start: np.ndarray
    link: str
    narrow: bool
    missing: tuple[float, ...] = ()
    slope: float = 1.0


def tree_sum(model: Any) -> TreeSum:
    """A fitted tree model as a sum; SourceRefused for a model that cannot be written as one."""
    if is_booster(model):
        return _booster_sum(model)
    if hasattr(model, "_predictors"):
        return _histogram_sum(model)
    if hasattr(model, "_raw_predict_init"):
        return _boosting_sum(model)
    if type(model).__name__ == "IsolationForest":
        return _isolation_sum(model)
    members = list(getattr(model, "estimators_", [model]))
    trees = [_tree(member.tree_, 1 / len(members), model) for member in members]
    return TreeSum(trees, np.zeros(trees[0].value.shape[1]), "identity", narrow=True)


# Models whose members read the same columns as they do, or some of them.
COMPOUNDS = frozenset((
    *MEMBER_MODELS,
    "AdaBoostClassifier",
    "AdaBoostRegressor",
    "BaggingClassifier",
    "BaggingRegressor",
))  # fmt: skip


def tree_sums(model: Any) -> list[TreeSum]:
    """The sums of trees in a fitted model: itself, or those among the members of a vote, a stack, a
    bag, a calibration, one for each class. Members behind steps of their own are left out."""
    name = type(model).__name__
    if name == "FrozenEstimator":
        return tree_sums(model.estimator)
    members = members_of(model)
    if not members and name in COMPOUNDS:
        members = list(model.estimators_)
    if is_booster(model):
        require_no_categories(model, booster_model(model))
    if not members:
        try:
            return [tree_sum(model)]
        except (AttributeError, SourceRefused):
            return []
    selections = getattr(model, "estimators_features_", [None] * len(members))
    return [
        summed if selection is None else _of_features(summed, np.asarray(selection))
        for member, selection in zip(members, selections, strict=True)
        for summed in tree_sums(member)
    ]


def mixes_kinds(model: Any) -> bool:
    """Whether members that are not trees, such as neighbors or kernels, precede or accompany
    trees: no two libraries round theirs alike."""
    members = getattr(model, "estimators_", ())
    return type(model).__name__ in COMPOUNDS and not all(map(tree_sums, members))


def _of_features(summed: TreeSum, selection: np.ndarray) -> TreeSum:
    """Trees that were trained on these of the features, INT [k], as trees of all features."""
    trees = [
        replace(tree, feature=np.where(tree.leaves, 0, selection[np.maximum(tree.feature, 0)]))
        for tree in summed.trees
    ]
    return replace(summed, trees=trees)


def estimator_thresholds(model: Any, features: int) -> list[np.ndarray]:
    """The numbers at which the trees of a final estimator split each feature, FP64 [k] each; empty
    without trees."""
    trees = [tree for summed in tree_sums(model) for tree in summed.trees]
    return thresholds_by_feature(trees, features)


def has_jumps(model: Any, depth: int = 6) -> bool:
    """Whether the output jumps where a number passes a threshold: there is a tree somewhere in the
    fitted model (in a pipeline, a bag, a calibration), or a step that bins numbers."""
    if hasattr(model, "tree_") or hasattr(model, "_predictors") or is_booster(model):
        return True
    if type(model).__name__ in ("KBinsDiscretizer", "Binarizer"):
        return True
    if depth == 0 or isinstance(model, str | bytes):
        return False
    if isinstance(model, list | tuple | np.ndarray):
        return any(has_jumps(item, depth - 1) for item in list(model)[:64])
    if not type(model).__module__.startswith("sklearn.") or not hasattr(model, "__dict__"):
        return False
    return any(has_jumps(attribute, depth - 1) for attribute in vars(model).values())


def _booster_sum(model: Any) -> TreeSum:
    booster = booster_model(model)
    if not booster.trees:
        raise SourceRefused(
            f"a {type(model).__name__} without trees (gblinear) is not converted inside a "
            "pipeline: use scikit-learn's own linear model there"
        )
    if not isinstance(booster, XgboostModel):
        return TreeSum(
            booster.trees, booster.start(), booster.link, narrow=False, slope=booster.slope
        )
    missing = () if np.isnan(booster.missing) else (booster.missing,)
    return TreeSum(booster.trees, booster.start(), booster.link, narrow=True, missing=missing)


def _tree(tree: Any, weight: float, model: Any) -> Tree:
    value = tree.value[:, 0, :].astype(np.float64)
    if hasattr(model, "classes_"):
        value = value / value.sum(axis=1, keepdims=True)
    return _to_tree(tree, value * weight, 0)


def _to_tree(tree: Any, value: np.ndarray, target: int) -> Tree:
    return Tree(
        feature=tree.feature,
        threshold=tree.threshold,
        yes=tree.children_left,
        no=tree.children_right,
        missing=np.asarray(tree.missing_go_to_left, dtype=bool),
        value=value,
        mode=["BRANCH_LEQ"] * tree.node_count,
        target=target,
    )


def _isolation_sum(model: Any) -> TreeSum:
    """``score_samples``: minus 2 to the power of minus the mean depth, in units of the mean depth
    of a random tree."""
    from sklearn.ensemble._iforest import _average_path_length

    random_depth = len(model.estimators_) * _average_path_length([model._max_samples])[0]
    parts = zip(
        model.estimators_,
        model.estimators_features_,
        model._decision_path_lengths,
        model._average_path_length_per_tree,
        strict=True,
    )
    trees = []
    for member, features, lengths, extra in parts:
        depth = np.asarray(lengths, np.float64) + extra - 1.0
        power = -np.log(2) * (depth / random_depth if random_depth else np.ones_like(depth))
        tree = _to_tree(member.tree_, power[:, None], 0)
        feature = np.where(tree.leaves, 0, np.asarray(features)[np.maximum(tree.feature, 0)])
        trees.append(replace(tree, feature=feature))
    return TreeSum(trees, np.zeros(1), "minus exp", narrow=True)


def _boosting_sum(model: Any) -> TreeSum:
    if model.init not in (None, "zero"):
        raise SourceRefused(
            f"a {type(model).__name__} that starts from another estimator (init=) has no "
            "converter: train it with init=None"
        )
    trees = [
        _to_tree(member.tree_, member.tree_.value[:, 0, :] * model.learning_rate, target)
        for stage in model.estimators_
        for target, member in enumerate(stage)
    ]
    start = np.zeros(model.estimators_.shape[1])
    if model.init is None:
        any_row = np.zeros((1, model.n_features_in_), dtype=np.float32)
        start = np.asarray(model._raw_predict_init(any_row), dtype=np.float64).ravel()
    return TreeSum(trees, start, _boosting_link(model), narrow=True)


def _boosting_link(model: Any) -> str:
    if not hasattr(model, "classes_"):
        return "identity"
    if model.loss == "exponential":
        return "sigmoid of twice"
    return "sigmoid" if len(model.classes_) == 2 else "softmax"


def _histogram_sum(model: Any) -> TreeSum:
    if getattr(model, "is_categorical_", None) is not None:
        raise SourceRefused(
            f"a {type(model).__name__} with categorical_features has no converter: one-hot encode "
            "those columns, or train with LightGBM"
        )
    trees = [
        _histogram_tree(predictor.nodes, target)
        for stage in model._predictors
        for target, predictor in enumerate(stage)
    ]
    start = np.asarray(model._baseline_prediction, dtype=np.float64).ravel()
    return TreeSum(trees, start, _histogram_link(model), narrow=False)


def _histogram_tree(nodes: np.ndarray, target: int) -> Tree:
    leaf = nodes["is_leaf"].astype(bool)
    return Tree(
        feature=nodes["feature_idx"].astype(np.int64),
        threshold=nodes["num_threshold"].astype(np.float64),
        yes=np.where(leaf, -1, nodes["left"].astype(np.int64)),
        no=np.where(leaf, -1, nodes["right"].astype(np.int64)),
        missing=nodes["missing_go_to_left"].astype(bool),
        value=nodes["value"].astype(np.float64)[:, None],
        mode=["BRANCH_LEQ"] * len(nodes),
        target=target,
    )


def _histogram_link(model: Any) -> str:
    if hasattr(model, "classes_"):
        return "sigmoid" if len(model.classes_) == 2 else "softmax"
    return "exp" if model.loss in ("poisson", "gamma") else "identity"


def tree_models() -> Iterator[tuple[type, bool]]:
    """Yield the classes that ``tree_sum`` accepts, and whether each is a classifier."""
    from sklearn import ensemble, tree

    for stem in ("DecisionTree", "ExtraTree"):
        yield getattr(tree, f"{stem}Classifier"), True
        yield getattr(tree, f"{stem}Regressor"), False
    for stem in ("RandomForest", "ExtraTrees", "GradientBoosting", "HistGradientBoosting"):
        yield getattr(ensemble, f"{stem}Classifier"), True
        yield getattr(ensemble, f"{stem}Regressor"), False
    yield ensemble.IsolationForest, False
