"""What stands around the estimator that answers: a search for its parameters, and a
TransformedTargetRegressor, with the way back to the target."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.errors import SourceRefused
from converters.sources.sklearn_functions import FUNCTIONS, function_parts

# Around an estimator whose scores are theirs; only their predict() may differ.
AROUND = {
    "FrozenEstimator": "estimator",
    "FixedThresholdClassifier": "estimator_",
    "TunedThresholdClassifierCV": "estimator_",
    "SelfTrainingClassifier": "estimator_",
}
AFFINE = ("StandardScaler", "MinMaxScaler", "RobustScaler", "MaxAbsScaler")
Back = tuple[Any, tuple[float, float]]


def without_target(path: Path, estimator: Any) -> tuple[Any, Back | None]:
    """The estimator with the regressor in the place of a TransformedTargetRegressor at its end, and
    the function or the (slope, offset) that leads from its answer to the target; None where there
    is no such thing. Of a search (GridSearchCV) it is the best one found, which is what answers; of
    an RFE its choice of columns and the estimator behind it. SourceRefused for a way back that has
    no converter."""
    if type(estimator).__name__.endswith("SearchCV") and hasattr(estimator, "best_estimator_"):
        return without_target(path, estimator.best_estimator_)
    within = AROUND.get(type(estimator).__name__, "")
    if within and hasattr(estimator, within):
        return without_target(path, getattr(estimator, within))
    if type(estimator).__name__ in ("RFE", "RFECV") and hasattr(estimator, "estimator_"):
        from sklearn.pipeline import Pipeline

        inner, back = without_target(path, estimator.estimator_)
        return Pipeline([("columns", estimator), ("answer", inner)]), back
    if hasattr(estimator, "steps") and hasattr(estimator.steps[-1][1], "regressor_"):
        from sklearn.pipeline import Pipeline

        inner, back = without_target(path, estimator.steps[-1][1])
        return Pipeline([*estimator.steps[:-1], (estimator.steps[-1][0], inner)]), back
    if type(estimator).__name__ != "TransformedTargetRegressor":
        return estimator, None
    inner, more = without_target(path, estimator.regressor_)
    if more is not None:
        raise SourceRefused(f"{path} transforms its target twice: do it once, and train again")
    return inner, _way_back(path, estimator.transformer_)


def _way_back(path: Path, transformer: Any) -> Back:
    name = type(transformer).__name__
    if name == "FunctionTransformer":
        function = transformer.inverse_func
        if function_parts(function, "a", "b") is not None:
            return function, (1.0, 0.0)
        raise SourceRefused(
            f"{path}: the target's inverse_func {getattr(function, '__name__', function)} has no "
            f"converter: there are numpy's {', '.join(sorted(FUNCTIONS))}"
        )
    if name not in AFFINE:
        raise SourceRefused(
            f"{path}: a target transformed by a {name} has no converter: use one of "
            f"{', '.join(AFFINE)}, or func= and inverse_func="
        )
    at = transformer.inverse_transform(np.array([[0.0], [1.0]])).ravel()
    return None, (float(at[1] - at[0]), float(at[0]))


def with_target(graph: onnx.ModelProto, back: Back | None) -> onnx.ModelProto:
    """The graph with the way back behind its one output, in FP64."""
    if back is None:
        return graph
    function, (slope, offset) = back
    old, names = graph.graph.output[0].name, {"slope": slope, "offset": offset}
    nodes = [
        helper.make_node("Cast", [old], ["target_wide"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["target_wide", "target_slope"], ["target_scaled"]),
        helper.make_node("Add", ["target_scaled", "target_offset"], ["target_moved"]),
    ]
    last = "target_moved"
    for operator, inputs, output, number in function_parts(function, last, "target_back") or []:
        more = []
        if number is not None:
            more = [f"{output}_number"]
            names[f"{output}_number".removeprefix("target_")] = number
        nodes.append(helper.make_node(operator, [*inputs, *more], [output]))
        last = output
    graph.graph.node.extend(nodes)
    graph.graph.initializer.extend(
        numpy_helper.from_array(np.array(number), f"target_{name}")
        for name, number in names.items()
    )
    del graph.graph.output[:]
    graph.graph.output.append(helper.make_tensor_value_info(last, TensorProto.DOUBLE, [None, None]))
    return graph
