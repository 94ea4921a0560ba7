"""Gaussian mixtures in FP64, in scikit-learn's own order: skl2onnx's converter is wrong for
spherical covariances, and rounds otherwise for tied ones."""

from math import log, pi
from typing import Any

import numpy as np
from onnx import TensorProto

from converters.sources.sklearn_nodes import GraphPart, add_output


def register_mixtures(shape: Any, parser: Any) -> None:
    """Make skl2onnx use these converters; ``shape`` and ``parser`` are for one output [n, k]."""
    from skl2onnx import update_registered_converter
    from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

    for model in (GaussianMixture, BayesianGaussianMixture):
        update_registered_converter(
            model, f"Sklearn{model.__name__}", shape, _convert_mixture, parser=parser
        )


def _convert_mixture(scope: Any, operator: Any, container: Any) -> None:
    """``predict_proba``: the softmax of the components' weighted log densities."""
    model, part = operator.raw_operator, GraphPart(scope, container)
    rows = part.wide(part.joined_input(operator))
    half = part.node("Mul", [_distances(part, rows, model), part.constant([-0.5])])
    logs = part.node("Add", [half, part.constant(_constants(model), (1, model.n_components))])
    add_output(part, operator, part.node("Softmax", [logs], axis=1))


def _distances(part: GraphPart, rows: str, model: Any) -> str:
    """The squared Mahalanobis distance of each row to each component, FP64 [n, components]."""
    means = np.asarray(model.means_, np.float64)
    choleskies = np.asarray(model.precisions_cholesky_, np.float64)
    if model.covariance_type in ("full", "tied"):
        if model.covariance_type == "tied":
            choleskies = np.broadcast_to(choleskies, (len(means), *choleskies.shape))
        axes = part.constant([1], dtype=TensorProto.INT64)
        columns = []
        for mean, cholesky in zip(means, choleskies, strict=True):
            turned = part.node("MatMul", [rows, part.constant(cholesky, cholesky.shape)])
            centred = part.node("Sub", [turned, part.constant(mean @ cholesky)])
            columns.append(part.node("ReduceSumSquare", [centred, axes], keepdims=1))
        return part.node("Concat", columns, axis=1)
    precisions = choleskies**2
    if model.covariance_type == "diag":
        return part.node(
            "Add",
            [
                part.node(
                    "Sub",
                    [
                        part.constant((means**2 * precisions).sum(axis=1)),
                        _product(part, rows, 2.0 * (means * precisions).T),
                    ],
                ),
                _product(part, part.node("Mul", [rows, rows]), precisions.T),
            ],
        )
    axes = part.constant([1], dtype=TensorProto.INT64)
    scales = part.constant(precisions)
    squares = part.node("ReduceSumSquare", [rows, axes], keepdims=1)
    crossed = part.node("Mul", [_product(part, rows, 2.0 * means.T), scales])
    constant = part.constant((means**2).sum(axis=1) * precisions)
    return part.node(
        "Add", [part.node("Sub", [constant, crossed]), part.node("Mul", [squares, scales])]
    )


def _product(part: GraphPart, rows: str, matrix: np.ndarray) -> str:
    return part.node("MatMul", [rows, part.constant(matrix, matrix.shape)])


def _constants(model: Any) -> np.ndarray:
    """What each component's log density has besides the distance, FP64 [components]."""
    features = model.means_.shape[1]
    choleskies = np.asarray(model.precisions_cholesky_, np.float64)
    if model.covariance_type in ("full", "tied"):
        diagonals = np.diagonal(choleskies, axis1=-2, axis2=-1)
        determinants = np.log(diagonals).sum(axis=-1)
    elif model.covariance_type == "diag":
        determinants = np.log(choleskies).sum(axis=1)
    else:
        determinants = features * np.log(choleskies)
    constants = -0.5 * features * log(2 * pi) + determinants + model._estimate_log_weights()
    if hasattr(model, "degrees_of_freedom_"):
        from scipy.special import digamma

        freedom = np.asarray(model.degrees_of_freedom_, np.float64)
        expected = features * log(2) + digamma(0.5 * (freedom - np.arange(features)[:, None])).sum(
            axis=0
        )
        constants += -0.5 * features * np.log(freedom)
        constants += 0.5 * (expected - features / model.mean_precision_)
    return np.asarray(constants)
