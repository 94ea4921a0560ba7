"""Converters of scikit-learn's support vector machines, in FP64 as libsvm computes: ONNX Runtime's
own operators support FP32 only.

Each function is a converter with skl2onnx's signature: ``(scope, operator, container)``.
"""

from itertools import combinations
from typing import Any

import numpy as np
from onnx import TensorProto

from converters.sources.sklearn_members import votes_and_confidences
from converters.sources.sklearn_nodes import (
    SCORES_OPTIONS,
    GraphPart,
    add_output,
    wants_margins,
)


def register_kernels() -> None:
    """Make skl2onnx use these converters."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )
    from sklearn import svm

    for model in (svm.SVR, svm.NuSVR):
        update_registered_converter(
            model,
            f"Sklearn{model.__name__}",
            calculate_linear_regressor_output_shapes,
            convert_decision,
        )
    for model in (svm.SVC, svm.NuSVC):
        update_registered_converter(
            model,
            f"Sklearn{model.__name__}",
            calculate_linear_classifier_output_shapes,
            _convert_classifier,
            options=SCORES_OPTIONS,
        )


def convert_decision(scope: Any, operator: Any, container: Any) -> None:
    """The prediction of a regressor, or ``decision_function`` of a OneClassSVM."""
    part = GraphPart(scope, container)
    add_output(part, operator, _decisions(part, operator))


def _convert_classifier(scope: Any, operator: Any, container: Any) -> None:
    from skl2onnx.operator_converters.support_vector_machines import convert_sklearn_svm_classifier

    if not wants_margins(scope, operator):
        convert_sklearn_svm_classifier(scope, operator, container)
        return
    model, part = operator.raw_operator, GraphPart(scope, container)
    decisions, count = _decisions(part, operator), len(model.classes_)
    if count == 2:
        output = part.node("Concat", [part.node("Neg", [decisions]), decisions], axis=1)
    elif model.decision_function_shape == "ovr":
        under = part.node("Less", [decisions, part.constant([0.0])])
        votes = part.node("Cast", [under], to=TensorProto.DOUBLE)
        output = votes_and_confidences(part, votes, part.node("Neg", [decisions]), count)
    else:
        output = decisions
    add_output(part, operator, output)


def _decisions(part: GraphPart, operator: Any) -> str:
    """The sums over the support vectors, FP64 [n, 1], or [n, pairs] for several classes."""
    model = operator.raw_operator
    rows = part.wide(part.joined_input(operator))
    vectors = _dense(model.support_vectors_)
    weights = _pair_weights(model)
    kernel = _kernel(part, model, rows, vectors)
    total = part.node("MatMul", [kernel, part.constant(weights, weights.shape)])
    return part.node("Add", [total, part.constant(np.ravel(model.intercept_))])


def _pair_weights(model: Any) -> np.ndarray:
    """FP64 [support vectors, decisions]: libsvm stores for each class and each other class one row
    of coefficients."""
    stored = _dense(model.dual_coef_)
    counts = np.asarray(getattr(model, "n_support_", ()))
    if len(stored) == 1:
        return np.asarray(stored.T)
    ends = np.concatenate([[0], np.cumsum(counts)])
    pairs = list(combinations(range(len(counts)), 2))
    weights = np.zeros((stored.shape[1], len(pairs)))
    for pair, (one, other) in enumerate(pairs):
        weights[ends[one] : ends[one + 1], pair] = stored[other - 1, ends[one] : ends[one + 1]]
        weights[ends[other] : ends[other + 1], pair] = stored[one, ends[other] : ends[other + 1]]
    return weights


def _kernel(part: GraphPart, model: Any, rows: str, vectors: np.ndarray) -> str:
    """FP64 [n, support vectors]."""
    product = part.node("MatMul", [rows, part.constant(vectors.T, vectors.T.shape)])
    if model.kernel == "linear":
        return product
    gamma = float(model._gamma)
    if model.kernel == "rbf":
        axes = part.constant([1], dtype=TensorProto.INT64)
        lengths = part.node("ReduceSumSquare", [rows, axes], keepdims=1)
        squares = part.constant((vectors**2).sum(axis=1), (1, len(vectors)))
        twice = part.node("Mul", [product, part.constant([-2.0])])
        distance = part.node("Add", [part.node("Add", [lengths, squares]), twice])
        return part.node("Exp", [part.node("Mul", [distance, part.constant([-gamma])])])
    moved = part.node(
        "Add",
        [part.node("Mul", [product, part.constant([gamma])]), part.constant([float(model.coef0)])],
    )
    if model.kernel == "poly":
        return part.node("Pow", [moved, part.constant([float(model.degree)])])
    if model.kernel == "sigmoid":
        return part.node("Tanh", [moved])
    raise NotImplementedError(f"{type(model).__name__}(kernel={model.kernel!r}) has no converter")


def _dense(values: Any) -> np.ndarray:
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values, np.float64)
