"""scikit-learn -> ONNX, in FP64, as scikit-learn itself computes.

skl2onnx converts everything except what converters.sources.sklearn_exact replaces.
"""

import copy
import re
import warnings
from collections.abc import Sequence
from typing import Any

import onnx

from converters.errors import ExportFailed, SourceRefused
from converters.export.graph_names import ALL, OPSET
from converters.export.trees2onnx import ML_DOMAIN, ML_OPSET
from converters.sources.sklearn_columns import column_names, members_of, selected_columns
from converters.sources.sklearn_exact import register_exact, register_vectorizers
from converters.sources.vectorizers import is_vectorizer
from converters.table import Column

NO_CONVERTER = re.compile(r"Unable to find a (?:shape calculator|converter)\D*?<class '([\w.]+)'")
NO_OPERATOR = re.compile(r"([\w.:]+)\(-?\d+\) is not a registered function/op")

# skl2onnx gives both outputs of a classifier to the step after it.
CLASSIFIER_AS_STEP = re.compile(r"but we got 2 input\(s\) which are \['label'")


def convert_estimator(
    estimator: Any,
    columns: Sequence[Column] | None,
    width: int,
    kind: str,
    vectorizers: Sequence[Any] = (),
    *,
    zero_missing: bool = False,
) -> onnx.ModelProto:
    """The graph of a fitted estimator. ``kind`` is ``classifier`` (the graph gives its
    probabilities), ``regressor``, ``outliers`` or ``clusters``.

    It has one input for each of ``columns``, or, if they are None, one of all ``width``. Each of
    ``vectorizers`` becomes a node ``VECTORIZE`` with its index, which ``public_graph`` replaces.
    ``zero_missing``: see ``register_exact``. ExportFailed or SourceRefused names an estimator that
    has no converter.
    """
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    register_vectorizers(vectorizers)
    estimator = _for_skl2onnx(estimator)
    reasons = []
    # Some of ONNX Runtime's operators (support vectors, AdaBoost) support FP32 only.
    for number in (DoubleTensorType, FloatTensorType):
        register_exact(number, zero_missing=zero_missing)
        try:
            graph = _converted(estimator, columns, width, kind, number)
            if not vectorizers:
                _require_loadable(graph)
            return graph
        except SourceRefused:
            raise
        except Exception as error:  # skl2onnx and ONNX Runtime raise many types
            reasons.append(_reason(error))
    raise ExportFailed(
        f"{type(estimator).__name__} cannot be converted to ONNX{_step_names(estimator)}: "
        f"{reasons[-1]}"
    )


def _reason(error: Exception) -> str:
    """The reason with a remedy, where skl2onnx's own message is about its internals."""
    message = " ".join(str(error).split())
    match = NO_CONVERTER.search(message)
    if match:
        name = match[1].rpartition(".")[2]
        return f"{name} has no converter; train with another estimator or step instead"
    match = NO_OPERATOR.search(message)
    if match:
        return (
            f"it needs {match[1]}, which ONNX Runtime does not have; train with another estimator "
            "or step instead"
        )
    if CLASSIFIER_AS_STEP.search(message):
        return (
            "a classifier that transforms columns for the step after it, as a "
            "LinearDiscriminantAnalysis does, has no converter; train with a PCA there, or without "
            "that step"
        )
    return message[:200]


def _converted(
    estimator: Any, columns: Sequence[Column] | None, width: int, kind: str, number: Any
) -> onnx.ModelProto:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import StringTensorType

    types = [(ALL, number([None, width]))] if columns is None else None
    if columns is not None:
        types = [
            (column.name, (StringTensorType if column.is_text else number)([None, 1]))
            for column in columns
        ]
    options = {id(estimator): {"zipmap": False}} if kind == "classifier" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph: onnx.ModelProto = convert_sklearn(
            estimator,
            initial_types=types,
            options=options,
            target_opset={"": OPSET, ML_DOMAIN: ML_OPSET},
        )
    if graph.functions:
        raise NotImplementedError(
            "a KNNImputer or another step that skl2onnx writes as a function has no converter; "
            "train with a SimpleImputer instead"
        )
    # A classifier's outputs are the label and the probabilities; the label is computed later.
    del graph.graph.output[:-1]
    return graph


def _for_skl2onnx(estimator: Any) -> Any:
    """A copy that skl2onnx understands and that predicts the same: a ColumnTransformer's masks and
    slices as positions, without parts that take no column; neighbours dense."""
    if is_vectorizer(estimator):
        return estimator  # it is known by its identity
    estimator = copy.copy(estimator)
    if hasattr(estimator, "steps"):
        estimator.steps = [(name, _for_skl2onnx(step)) for name, step in estimator.steps]
    elif hasattr(estimator, "transformer_list"):
        estimator.transformer_list = [
            (name, _for_skl2onnx(part)) for name, part in estimator.transformer_list
        ]
    elif hasattr(estimator, "transformers_") and hasattr(estimator, "remainder"):
        names = column_names(estimator)
        selections = [
            (name, part, selected_columns(selector, names))
            for name, part, selector in estimator.transformers_
        ]
        estimator.transformers_ = [
            (name, _for_skl2onnx(part), selected) for name, part, selected in selections if selected
        ]
    elif hasattr(estimator, "calibrated_classifiers_"):
        calibrated = [copy.copy(part) for part in estimator.calibrated_classifiers_]
        for part in calibrated:
            part.estimator = _for_skl2onnx(part.estimator)
        estimator.calibrated_classifiers_ = calibrated
    elif members_of(estimator):
        estimator.estimators_ = [
            part if isinstance(part, str) else _for_skl2onnx(part) for part in estimator.estimators_
        ]
    if hasattr(getattr(estimator, "_fit_X", None), "toarray"):
        estimator._fit_X = estimator._fit_X.toarray()
    return estimator


def _require_loadable(graph: onnx.ModelProto) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _step_names(estimator: Any) -> str:
    """The names of the estimator's steps in parentheses, or ""."""
    steps = [type(step).__name__ for _, step in getattr(estimator, "steps", [])]
    return f" (its steps: {', '.join(steps)})" if steps else ""
