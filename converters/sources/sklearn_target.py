"""The wrappers around the estimator that predicts: a parameter search, and a
TransformedTargetRegressor with the inverse transform of its target."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.errors import SourceRefused
from converters.sources.sklearn_functions import FUNCTIONS, function_parts

# Wrappers that keep their estimator's scores; only predict() may differ.
WRAPPERS = {
    "FrozenEstimator": "estimator",
    "FixedThresholdClassifier": "estimator_",
    "TunedThresholdClassifierCV": "estimator_",
    "SelfTrainingClassifier": "estimator_",
}
AFFINE = ("StandardScaler", "MinMaxScaler", "RobustScaler", "MaxAbsScaler")
InverseTransform = tuple[Any, tuple[float, float]]


def without_target(path: Path, estimator: Any) -> tuple[Any, InverseTransform | None]:
    """Unwrap the estimator. Returns the pipeline with the inner regressor instead of a
    TransformedTargetRegressor at its end, and the function and (slope, offset) that lead from its
    output to the target; None if there is no such wrapper.

    For a search (GridSearchCV) it is the best estimator found, which is the one that predicts; for
    an RFE its column selection and the estimator after it. SourceRefused for an inverse transform
    that has no converter.
    """
    if type(estimator).__name__.endswith("SearchCV") and hasattr(estimator, "best_estimator_"):
        return without_target(path, estimator.best_estimator_)
    attribute = WRAPPERS.get(type(estimator).__name__, "")
    if attribute and hasattr(estimator, attribute):
        return without_target(path, getattr(estimator, attribute))
    if type(estimator).__name__ in ("RFE", "RFECV") and hasattr(estimator, "estimator_"):
        from sklearn.pipeline import Pipeline

        inner, inverse = without_target(path, estimator.estimator_)
        return Pipeline([("columns", estimator), ("answer", inner)]), inverse
    if hasattr(estimator, "steps"):
        from sklearn.pipeline import Pipeline

        *before, (name, last) = estimator.steps
        inner, inverse = without_target(path, last)
        return (estimator if inner is last else Pipeline([*before, (name, inner)])), inverse
    if type(estimator).__name__ != "TransformedTargetRegressor":
        return estimator, None
    inner, inner_inverse = without_target(path, estimator.regressor_)
    if inner_inverse is not None:
        raise SourceRefused(f"{path} transforms its target twice: do it once, and train again")
    return inner, _inverse_of(path, estimator.transformer_)


def _inverse_of(path: Path, transformer: Any) -> InverseTransform:
    name = type(transformer).__name__
    if name == "FunctionTransformer":
        function = transformer.inverse_func
        if transformer.inv_kw_args:
            raise SourceRefused(
                f"{path}: inv_kw_args= of the target's FunctionTransformer has no converter: use "
                "an inverse_func without arguments"
            )
        if function_parts(function, "a", "b") is not None:
            return function, (1.0, 0.0)
        raise SourceRefused(
            f"{path}: the target's inverse_func {getattr(function, '__name__', function)} has no "
            f"converter: use one of numpy's {', '.join(sorted(FUNCTIONS))}"
        )
    if name not in AFFINE:
        raise SourceRefused(
            f"{path}: a target transformed by a {name} has no converter: use one of "
            f"{', '.join(AFFINE)}, or func= and inverse_func="
        )
    ends = transformer.inverse_transform(np.array([[0.0], [1.0]])).ravel()
    return None, (float(ends[1] - ends[0]), float(ends[0]))


def with_target(graph: onnx.ModelProto, inverse: InverseTransform | None) -> onnx.ModelProto:
    """Append the inverse transform to the graph's one output, in FP64."""
    if inverse is None:
        return graph
    function, (slope, offset) = inverse
    output_name, constants = graph.graph.output[0].name, {"slope": slope, "offset": offset}
    nodes = [
        helper.make_node("Cast", [output_name], ["target_wide"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["target_wide", "target_slope"], ["target_scaled"]),
        helper.make_node("Add", ["target_scaled", "target_offset"], ["target_moved"]),
    ]
    result = "target_moved"
    for operator, inputs, output, constant in function_parts(function, result, "target_back") or []:
        extra_inputs = []
        if constant is not None:
            extra_inputs = [f"{output}_number"]
            constants[f"{output}_number".removeprefix("target_")] = constant
        nodes.append(helper.make_node(operator, [*inputs, *extra_inputs], [output]))
        result = output
    graph.graph.node.extend(nodes)
    graph.graph.initializer.extend(
        numpy_helper.from_array(np.array(constant), f"target_{name}")
        for name, constant in constants.items()
    )
    del graph.graph.output[:]
    graph.graph.output.append(
        helper.make_tensor_value_info(result, TensorProto.DOUBLE, [None, None])
    )
    return graph
