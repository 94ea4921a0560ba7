"""scikit-learn -> ONNX, in FP64, as scikit-learn itself computes.

skl2onnx converts everything but what converters.tabular.sklearn_exact has.
"""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import onnx

from converters.errors import ExportFailed, SourceRefused
from converters.tabular.graph_names import ALL, OPSET
from converters.tabular.sklearn_exact import register_exact, register_vectorizers
from converters.tabular.table import Column
from converters.tabular.trees2onnx import ML_DOMAIN, ML_OPSET

NO_CONVERTER = re.compile(r"Unable to find a (?:shape calculator|converter)\D*?<class '([\w.]+)'")


def convert_estimator(
    estimator: Any,
    columns: Sequence[Column] | None,
    width: int,
    kind: str,
    vectorizers: Sequence[Any] = (),
    *,
    zero_missing: bool = False,
) -> onnx.ModelProto:
    """The graph of a ``classifier`` (its probabilities) or a ``regressor``.

    One input for each of ``columns``, or, where they are None, one of all ``width``. Each of
    ``vectorizers`` is a node ``VECTORIZE`` with its place, for ``public_graph`` to replace.
    ``zero_missing``: as ``register_exact`` has it.
    SourceRefused names an estimator that has no converter.
    """
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    register_exact(zero_missing=zero_missing)
    register_vectorizers(vectorizers)
    _flatten_nothing(estimator)
    reasons = []
    # Some of ONNX Runtime's operators (support vectors, AdaBoost's) know FP32 only.
    for number in (DoubleTensorType, FloatTensorType):
        try:
            graph = _converted(estimator, columns, width, kind, number)
            if not vectorizers:
                _require_loadable(graph)
            return graph
        except SourceRefused:
            raise
        except Exception as error:  # skl2onnx and ONNX Runtime raise many kinds
            reasons.append(_reason(error))
    raise ExportFailed(
        f"{type(estimator).__name__} cannot be converted to ONNX{_named(estimator)}: {reasons[-1]}"
    )


def _reason(error: Exception) -> str:
    """In words that say what to do, where skl2onnx's own speak of its insides."""
    said = " ".join(str(error).split())
    unknown = NO_CONVERTER.search(said)
    if unknown:
        name = unknown[1].rpartition(".")[2]
        return f"{name} has no converter; train with another estimator or step in its place"
    return said[:200]


def _converted(
    estimator: Any, columns: Sequence[Column] | None, width: int, kind: str, number: Any
) -> onnx.ModelProto:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import StringTensorType

    types = [(ALL, number([None, width]))] if columns is None else None
    if columns is not None:
        types = [(c.name, (StringTensorType if c.is_text else number)([None, 1])) for c in columns]
    options = {id(estimator): {"zipmap": False}} if kind == "classifier" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph: onnx.ModelProto = convert_sklearn(
            estimator,
            initial_types=types,
            options=options,
            target_opset={"": OPSET, ML_DOMAIN: ML_OPSET},
        )
    # A classifier gives the label and then the probabilities; the label is made anew.
    del graph.graph.output[:-1]
    return graph


def _flatten_nothing(estimator: Any) -> None:
    """skl2onnx wants a VotingClassifier without this option, which only its transform() heeds."""
    steps = [step for _, step in getattr(estimator, "steps", [])]
    for each in (estimator, *steps):
        if hasattr(each, "flatten_transform"):
            each.flatten_transform = False


def _require_loadable(graph: onnx.ModelProto) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _named(estimator: Any) -> str:
    """The estimators in it, from the outside in."""
    steps = [type(step).__name__ for _, step in getattr(estimator, "steps", [])]
    return f" (its steps: {', '.join(steps)})" if steps else ""
