"""Converters of scikit-learn's estimators that combine others: calibration, stacking, voting, one
classifier per class or pair of classes.

skl2onnx's own assume its own members (a LinearSVC with one column), ignore weights in a list, and
calibrate probabilities where scikit-learn calibrates margins. Each function is a converter with
skl2onnx's signature: ``(scope, operator, container)``.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from onnx import TensorProto

from converters.sources.sklearn_nodes import (
    SCORES_OPTIONS,
    GraphPart,
    add_output,
    wants_margins,
)

FP64 = TensorProto.DOUBLE


def register_members() -> None:
    """Make skl2onnx use these converters."""
    from skl2onnx import update_registered_converter
    from sklearn import calibration, ensemble, multiclass

    for model, convert in (
        (calibration.CalibratedClassifierCV, _convert_calibrated),
        (ensemble.StackingClassifier, _convert_stacking),
        (ensemble.VotingClassifier, _convert_voting),
        (multiclass.OneVsRestClassifier, _convert_one_vs_rest),
        (multiclass.OneVsOneClassifier, _convert_one_vs_one),
    ):
        update_registered_converter(
            model,
            f"Sklearn{model.__name__}",
            _shape,
            convert,
            options=SCORES_OPTIONS,
        )
    for model, convert in (
        (ensemble.StackingRegressor, _convert_stacking),
        (ensemble.VotingRegressor, _convert_voting),
    ):
        update_registered_converter(model, f"Sklearn{model.__name__}", _shape, convert)


def _shape(operator: Any) -> None:
    """The outputs' types; skl2onnx's own functions refuse several inputs, and texts, which members
    that are pipelines take."""
    from skl2onnx.common.data_types import (
        DoubleTensorType,
        FloatTensorType,
        Int64TensorType,
        StringTensorType,
    )

    rows, model = operator.inputs[0].get_first_dimension(), operator.raw_operator
    is_fp32 = any(isinstance(variable.type, FloatTensorType) for variable in operator.inputs)
    number = FloatTensorType if is_fp32 else DoubleTensorType
    width = len(model.classes_) if hasattr(model, "classes_") else 1
    operator.outputs[-1].type = number([rows, width])
    if len(operator.outputs) > 1:
        is_text = np.asarray(model.classes_).dtype.kind in "OUS"
        operator.outputs[0].type = (StringTensorType if is_text else Int64TensorType)([rows])


def _convert_calibrated(scope: Any, operator: Any, container: Any) -> None:
    model, part = operator.raw_operator, GraphPart(scope, container)
    members = [
        _calibrated(part, operator, classifier, len(model.classes_))
        for classifier in model.calibrated_classifiers_
    ]
    add_output(part, operator, _mean(part, members, None))


def _calibrated(part: GraphPart, operator: Any, classifier: Any, count: int) -> str:
    """The probabilities of one ``_CalibratedClassifier``, FP64 [n, count]."""
    estimator = classifier.estimator
    if len(estimator.classes_) != count:
        raise NotImplementedError(
            "a CalibratedClassifierCV with a class that one of its folds lacks has no converter"
        )
    method = "decision_function" if hasattr(estimator, "decision_function") else "predict_proba"
    scores = _member(part, operator, estimator, method)
    if classifier.method == "temperature":
        return _with_temperature(part, scores, classifier.calibrators[0].beta_, method)
    columns = [count - 1] if count == 2 else list(range(count))
    if count == 2:
        scores = part.column(scores, -1)
    calibrated = [
        _calibrate(part, part.column(scores, -1 if count == 2 else column), calibrator)
        for column, calibrator in zip(columns, classifier.calibrators, strict=True)
    ]
    if count == 2:
        return part.node("Concat", [_complement(part, calibrated[0]), calibrated[0]], axis=1)
    return part.shares(part.node("Concat", calibrated, axis=1))


def _with_temperature(part: GraphPart, scores: str, beta: float, method: str) -> str:
    if method == "predict_proba":
        smallest = part.constant([1e-12])
        scores = part.node("Log", [part.node("Add", [scores, smallest])])
    return part.node("Softmax", [part.node("Mul", [scores, part.constant([float(beta)])])], axis=1)


def _calibrate(part: GraphPart, scores: str, calibrator: Any) -> str:
    """[n, 1] -> [n, 1]."""
    if hasattr(calibrator, "a_"):
        slope, offset = (
            part.constant([-float(number)]) for number in (calibrator.a_, calibrator.b_)
        )
        return part.node("Sigmoid", [part.node("Add", [part.node("Mul", [scores, slope]), offset])])
    return _interpolate(part, scores, calibrator.X_thresholds_, calibrator.y_thresholds_)


def _interpolate(part: GraphPart, scores: str, knots: np.ndarray, values: np.ndarray) -> str:
    """``np.interp``: linear between the knots, constant beyond them. [n, 1] -> [n, 1]."""
    knots, values = np.asarray(knots, np.float64), np.asarray(values, np.float64)
    slopes = np.append(np.diff(values) / np.diff(knots), 0.0)
    low, high = part.constant(float(knots[0]), ()), part.constant(float(knots[-1]), ())
    inside = part.node("Max", [part.node("Min", [scores, high]), low])
    # The number of inner knots that a score reaches is the index of the knot to its left.
    inner = np.append(knots[1:], np.inf)
    reached = part.node("GreaterOrEqual", [inside, part.constant(inner, (1, len(inner)))])
    axes = part.constant([1], dtype=TensorProto.INT64)
    ones = part.node("Cast", [reached], to=TensorProto.INT64)
    index = part.node("ReduceSum", [ones, axes], keepdims=1)
    knot, value, slope = (
        part.node("Gather", [part.constant(row), index], axis=0) for row in (knots, values, slopes)
    )
    rise = part.node("Mul", [part.node("Sub", [inside, knot]), slope])
    return part.node("Add", [rise, value])


def _convert_stacking(scope: Any, operator: Any, container: Any) -> None:
    model, part = operator.raw_operator, GraphPart(scope, container)
    if model.cv == "prefit" and any(member == "drop" for member in model.estimators_):
        raise NotImplementedError("a stack of fitted estimators with a dropped one")
    parts = []
    for member, method in zip(model.estimators_, model.stack_method_, strict=True):
        scores = _member(part, operator, member, method)
        if method == "decision_function" and len(member.classes_) == 2:
            scores = part.column(scores, -1)
        elif method == "predict_proba" and len(model.classes_) == 2:
            scores = part.column(scores, 1)
        parts.append(scores)
    if model.passthrough:
        parts.append(part.wide(part.joined_input(operator)))
    stacked = part.node("Concat", parts, axis=1)
    final = model.final_estimator_
    method = "predict"
    if hasattr(model, "classes_"):
        method = "decision_function" if wants_margins(scope, operator) else "predict_proba"
    output = part.scores(final, [part.variable(stacked)], method)
    add_output(part, operator, output)


def _convert_voting(scope: Any, operator: Any, container: Any) -> None:
    model, part = operator.raw_operator, GraphPart(scope, container)
    method = "predict_proba" if hasattr(model, "classes_") else "predict"
    members = [_member(part, operator, member, method) for member in model.estimators_]
    add_output(part, operator, _mean(part, members, model._weights_not_none))


def _convert_one_vs_rest(scope: Any, operator: Any, container: Any) -> None:
    model, part = operator.raw_operator, GraphPart(scope, container)
    margins = wants_margins(scope, operator)
    method = "decision_function" if margins else "predict_proba"
    columns = [
        part.column(_member(part, operator, member, method), -1) for member in model.estimators_
    ]
    if len(columns) == 1:
        first = part.node("Neg", columns) if margins else _complement(part, columns[0])
        add_output(part, operator, part.node("Concat", [first, *columns], axis=1))
        return
    scores = part.node("Concat", columns, axis=1)
    add_output(part, operator, scores if margins else part.shares(scores, uniform=False))


def _convert_one_vs_one(scope: Any, operator: Any, container: Any) -> None:
    """Votes, and the sums of margins squeezed into thirds: ``_ovr_decision_function``."""
    model, part = operator.raw_operator, GraphPart(scope, container)
    count = len(model.classes_)
    confidences, votes = [], []
    for member in model.estimators_:
        method = "decision_function" if hasattr(member, "decision_function") else "predict_proba"
        confidence = part.column(_member(part, operator, member, method), -1)
        middle = part.constant([0.0 if method == "decision_function" else 0.5])
        over = part.node("Greater", [confidence, middle])
        confidences.append(confidence)
        votes.append(part.node("Cast", [over], to=FP64))
    output = votes_and_confidences(
        part, part.node("Concat", votes, axis=1), part.node("Concat", confidences, axis=1), count
    )
    if count == 2:
        second = part.column(output, 1)
        output = part.node("Concat", [part.node("Neg", [second]), second], axis=1)
    add_output(part, operator, output)


def votes_and_confidences(part: GraphPart, votes: str, confidences: str, count: int) -> str:
    """scikit-learn's ``_ovr_decision_function``: [n, pairs] votes for the second of each pair (0 or
    1) and their confidences -> [n, count]."""
    pairs = list(combinations(range(count), 2))
    second = np.zeros((len(pairs), count))
    first = np.zeros((len(pairs), count))
    for pair, (one, other) in enumerate(pairs):
        first[pair, one] = second[pair, other] = 1.0
    signs = part.constant(second - first, (len(pairs), count))
    counted = part.node("Add", [
        part.node("MatMul", [votes, signs]), part.constant(first.sum(axis=0), (1, count))
    ])  # fmt: skip
    total = part.node("MatMul", [confidences, signs])
    size = part.node("Add", [part.node("Abs", [total]), part.constant([1.0])])
    third = part.node("Div", [total, part.node("Mul", [size, part.constant([3.0])])])
    return part.node("Add", [counted, third])


def _member(part: GraphPart, operator: Any, estimator: Any, method: str) -> str:
    """What the estimator's ``method`` gives for the operator's own rows, FP64; two columns for a
    binary margin."""
    return part.scores(estimator, operator.inputs, method)


def _mean(part: GraphPart, members: Sequence[str], weights: Sequence[float] | None) -> str:
    shares = np.ones(len(members)) if weights is None else np.asarray(weights, np.float64)
    shares = shares / shares.sum()
    weighted = [
        part.node("Mul", [member, part.constant([float(share)])])
        for member, share in zip(members, shares, strict=True)
    ]
    return part.node("Sum", weighted)


def _complement(part: GraphPart, probability: str) -> str:
    return part.node("Sub", [part.constant([1.0]), probability])
