"""Converters of scikit-learn's nearest neighbors that are weighted by their distance, in FP64:
skl2onnx weights all of them alike.

Each function is a converter with skl2onnx's signature: ``(scope, operator, container)``.
"""

from typing import Any

import numpy as np
from onnx import TensorProto

from converters.sources.sklearn_nodes import SCORES_OPTIONS, GraphPart, add_output

INT64 = TensorProto.INT64
POWERS = {"euclidean": 2.0, "l2": 2.0, "manhattan": 1.0, "l1": 1.0, "cityblock": 1.0}


def register_neighbors() -> None:
    """Make skl2onnx use these converters."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    update_registered_converter(
        KNeighborsClassifier,
        "SklearnKNeighborsClassifier",
        calculate_linear_classifier_output_shapes,
        _convert_classifier,
        options={**SCORES_OPTIONS, "optim": [None, "cdist"]},
    )
    update_registered_converter(
        KNeighborsRegressor,
        "SklearnKNeighborsRegressor",
        calculate_linear_regressor_output_shapes,
        _convert_regressor,
        options={"optim": [None, "cdist"]},
    )


def _convert_classifier(scope: Any, operator: Any, container: Any) -> None:
    from skl2onnx.operator_converters import nearest_neighbours

    model = operator.raw_operator
    if model.weights == "uniform":
        nearest_neighbours.convert_nearest_neighbors_classifier(scope, operator, container)
        return
    codes = np.asarray(model._y).reshape(-1)
    votes = np.eye(len(model.classes_))[codes]
    part = GraphPart(scope, container)
    add_output(part, operator, _weighted_mean(part, operator, votes))


def _convert_regressor(scope: Any, operator: Any, container: Any) -> None:
    from skl2onnx.operator_converters import nearest_neighbours

    model = operator.raw_operator
    if model.weights == "uniform":
        nearest_neighbours.convert_nearest_neighbors_regressor(scope, operator, container)
        return
    targets = np.asarray(model._y, np.float64).reshape(len(model._fit_X), -1)
    part = GraphPart(scope, container)
    add_output(part, operator, _weighted_mean(part, operator, targets))


def _weighted_mean(part: GraphPart, operator: Any, targets: np.ndarray) -> str:
    """The neighbors' ``targets`` FP64 [m, k], each weighted by 1 over its distance, FP64 [n, k]. If
    some are at no distance, only those count."""
    model = operator.raw_operator
    if model.weights != "distance":
        raise NotImplementedError("neighbors weighted by a function have no converter")
    distance, nearest = _nearest(part, model, part.wide(part.joined_input(operator)))
    one, second = (part.constant([axis], dtype=INT64) for axis in (1, 2))
    at_none = part.node("Equal", [distance, part.constant([0.0])])
    only = part.node("Cast", [at_none], to=TensorProto.DOUBLE)
    some = part.node("Cast", [part.node("ReduceMax", [only, one], keepdims=1)], to=TensorProto.BOOL)
    safe = part.node("Where", [at_none, part.constant([1.0]), distance])
    weights = part.node("Where", [some, only, part.node("Reciprocal", [safe])])
    chosen = part.node("Gather", [part.constant(targets, targets.shape), nearest], axis=0)
    weighted = part.node("Mul", [chosen, part.node("Unsqueeze", [weights, second])])
    total = part.node("ReduceSum", [weighted, one], keepdims=0)
    return part.node("Div", [total, part.node("ReduceSum", [weights, one], keepdims=1)])


def _nearest(part: GraphPart, model: Any, rows: str) -> tuple[str, str]:
    """The distances FP64 [n, k] and the indices INT64 [n, k] of the nearest trained rows."""
    metric, settings = model.effective_metric_, dict(model.effective_metric_params_ or {})
    power = float(settings.pop("p", 2.0)) if metric == "minkowski" else POWERS.get(metric)
    if power is None or settings.get("w") is not None or not np.isfinite(power):
        raise NotImplementedError(
            f"neighbors weighted by the distance {metric!r} have no converter; train with "
            "'euclidean' or 'manhattan'"
        )
    trained = np.asarray(model._fit_X, np.float64)
    rows_3d = part.node("Unsqueeze", [rows, part.constant([1], dtype=INT64)])
    gaps = part.node("Sub", [rows_3d, part.constant(trained, (1, *trained.shape))])
    reduction = {1.0: "ReduceL1", 2.0: "ReduceL2"}.get(power)
    last = part.constant([2], dtype=INT64)
    if reduction:
        distances = part.node(reduction, [gaps, last], keepdims=0)
    else:
        powers = part.node("Pow", [part.node("Abs", [gaps]), part.constant([power])])
        total = part.node("ReduceSum", [powers, last], keepdims=0)
        distances = part.node("Pow", [total, part.constant([1 / power])])
    count = part.constant([int(model.n_neighbors)], dtype=INT64)
    names = [str(part.scope.get_unique_variable_name(name)) for name in ("near", "indices")]
    part.container.add_node("TopK", [distances, count], names, axis=1, largest=0, sorted=1)
    return names[0], names[1]
