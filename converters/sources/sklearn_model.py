"""A scikit-learn classifier or regressor, a search for outliers or for clusters, or a Pipeline that
ends in one, from a skops file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from converters.errors import SourceMissing, SourceRefused
from converters.sources.sklearn_boosters import XGBOOST, boosters_in
from converters.sources.sklearn_columns import (
    columns_of,
    direct_columns,
    edges_of,
    ignored_columns,
    takes_columns_by_name,
    vectorizers_of,
)
from converters.sources.sklearn_target import with_target, without_target
from converters.sources.sklearn_trees import estimator_thresholds, has_jumps, tree_sum
from converters.sources.skops_file import load_skops
from converters.sources.tabular_model import Forest, TabularModel
from converters.tabular.table import MISSING, Column, Table, ordinary_row
from converters.tabular.vectorizers import vocabulary_note, written

KIND_REMARKS = {
    "outliers": (
        "the value is decision_function: the lower, the stranger; below 0 it is an outlier, and "
        "predict() says -1",
    ),
    "clusters": (
        "labels are the numbers of the clusters. Scores are predict_proba, or, where it has none "
        "(KMeans), minus the distance to the cluster's centre (transform)",
    ),
}


class SklearnModel(TabularModel):
    library: ClassVar[str] = "scikit-learn"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.estimator, self.remarks = load_skops(path)
        self.kind = _kind(path, self.estimator)
        # What answers, without what stands around it; ``_back`` leads to the target.
        self.inner, self._back = without_target(path, self.estimator)
        if type(self.last).__name__ == "IsolationForest":
            self._back = None, (1.0, -float(self.last.offset_))
        self._trained = columns_of(self.inner)
        # Texts and numbers cannot lie in one tensor, and a ColumnTransformer asks for names.
        has_text = any(column.is_text for column in self._trained)
        self.by_name = takes_columns_by_name(self.inner) or has_text
        if self.by_name:
            self.order = tuple(column.name for column in self._trained)
        # (its column, vectorizer) for each that reads texts, and whether anything else reads those.
        self.vectorizers = vectorizers_of(self.inner)
        for _, vectorizer in self.vectorizers:
            written(vectorizer)
        self.only_texts = not hasattr(self.inner, "n_features_in_")
        ignored = ignored_columns(self.inner)
        self.columns = tuple(c for c in self._trained if c.name not in ignored)
        self.steps = has_jumps(self.inner)
        self.labels = ()
        if self.kind == "classifier":
            self.labels = _labels(path, self.estimator)
        if self.kind == "clusters":
            self.labels = tuple(map(str, range(_clusters(self.last))))
            # A distance is what is left of three squares.
            self.far = hasattr(self.last, "predict_proba")
        self.remarks = (*self.remarks, *KIND_REMARKS.get(self.kind, ()))
        self.margins = self.kind == "classifier" and not hasattr(self.estimator, "predict_proba")
        if self.margins:
            said = (
                "scores are margins (decision_function), not probabilities; of two labels -d and d"
            )
            self.remarks = (*self.remarks, said)
        self.boosters = list(boosters_in(self.inner))
        self.remarks = (*self.remarks, *map(_booster_remark, self.boosters))

    @property
    def last(self) -> Any:
        """The estimator at the end of the pipeline."""
        return _last(self.inner)

    def answer(self, table: Table) -> np.ndarray:
        frame = self._frame(table)
        if self.kind == "clusters" and not hasattr(self.last, "predict_proba"):
            return -np.asarray(self.estimator.transform(frame), dtype=np.float64)
        if self.kind == "outliers":
            return np.asarray(self.estimator.decision_function(frame)).reshape(-1, 1)
        if self.margins:
            margins = np.asarray(self.estimator.decision_function(frame), dtype=np.float64)
            return margins if margins.ndim > 1 else np.stack([-margins, margins], axis=1)
        if self.labels:
            return np.asarray(self.estimator.predict_proba(frame), dtype=np.float64)
        values = np.asarray(self.estimator.predict(frame), dtype=np.float64)
        if values.ndim > 1 and values.shape[1] > 1:
            raise SourceRefused(
                f"{self.path} predicts {values.shape[1]} values a row: train one model for each"
            )
        return values.reshape(len(table), 1)

    def decide(self, table: Table) -> np.ndarray:
        order = {label: index for index, label in enumerate(self.labels)}
        predicted = self.estimator.predict(self._frame(table))
        return np.array([order[str(each)] for each in predicted], dtype=np.int64)

    def graph(self) -> onnx.ModelProto:
        from converters.tabular.sklearn2onnx import convert_estimator

        columns = self._trained if self.by_name else None
        vectorizers = [vectorizer for _, vectorizer in self.vectorizers]
        graph = convert_estimator(
            self.inner,
            columns,
            len(self._trained),
            self.kind,
            vectorizers,
            zero_missing=self._gives_sparse_rows(),
        )
        # Of two classes ONNX Runtime's support vectors give d and -d.
        turned = self.margins and type(self.last).__name__ in ("SVC", "NuSVC")
        if turned and len(self.labels) == 2:
            return with_target(graph, (np.negative, (1.0, 0.0)))
        return with_target(graph, self._back)

    def text_parts(self) -> Sequence[tuple[str, Any]]:
        return self.vectorizers

    def direct(self, column: Column) -> bool:
        return column.name in direct_columns(self.inner)

    def is_free_text(self, column: Column) -> bool:
        return any(name == column.name for name, _ in self.vectorizers)

    def vocabulary_notes(self, table: Table) -> Sequence[str]:
        return [
            vocabulary_note(name, vectorizer, table.columns[name].tolist())
            for name, vectorizer in self.vectorizers
        ]

    def thresholds(self) -> Mapping[str, np.ndarray]:
        if self.inner is not self.last:
            return edges_of(self.inner)
        found = estimator_thresholds(self.last, len(self._trained))
        return {column.name: each for column, each in zip(self._trained, found, strict=True)}

    def forest(self, table: Table) -> Forest | None:
        try:
            form = tree_sum(self.last)
        except (AttributeError, SourceRefused):
            return None
        direct = self.inner is self.last
        rows = self._before_last(table)
        dense = rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows, np.float64)
        with np.errstate(over="ignore"):
            numbers = dense.astype(np.float32 if form.narrow else np.float64).astype(np.float64)
        sparse = hasattr(rows, "toarray") and type(self.last).__name__ in XGBOOST
        numbers[np.isin(numbers, (*form.missing, *((0.0,) if sparse else ())))] = np.nan
        return Forest(form.trees, numbers, direct)

    def marks(self) -> Mapping[str, Sequence[float]]:
        """The numbers that boosters take for missing ones."""
        found = [float(getattr(each, "missing", np.nan)) for each in self.boosters]
        held = tuple(number for number in dict.fromkeys(found) if not np.isnan(number))
        return {column.name: held for column in self._trained if held and not column.is_text}

    def _before_last(self, table: Table) -> Any:
        """What the last estimator is given for these rows."""
        rows, model = self._frame(table), self.inner
        while hasattr(model, "steps"):
            before, model = model[:-1], model.steps[-1][1]
            rows = before.transform(rows) if len(before) else rows
        return rows

    def _gives_sparse_rows(self) -> bool:
        """Whether what comes before a booster gives it sparse rows."""
        if not self.boosters or self.inner is self.last:
            return False
        return hasattr(self._before_last(ordinary_row(self.columns)), "toarray")

    def _frame(self, table: Table) -> Any:
        """The rows as the model was trained on them: a DataFrame if it knows its columns' names."""
        if self.only_texts:
            return [str(text) for text in table.columns[self._trained[0].name]]
        filled = {c.name: table.columns.get(c.name, _blank(c, len(table))) for c in self._trained}
        if not hasattr(self.inner, "feature_names_in_"):
            if any(column.is_text for column in self._trained):
                held = [_objects(c, filled[c.name]) for c in self._trained]
                return np.stack(held, axis=1)
            return np.stack(list(filled.values()), axis=1)
        try:
            import pandas as pd
        except ImportError:
            raise SourceMissing(
                f"{self.path} was trained on named columns, which needs pandas: pip install pandas"
            ) from None
        as_objects = {c.name: _objects(c, filled[c.name]) for c in self._trained if c.is_text}
        return pd.DataFrame({**filled, **as_objects})


def _booster_remark(model: Any) -> str:
    name = type(model).__name__
    if name not in XGBOOST:
        return f"the {name} in it answers with its best iteration, as its predict() does"
    return (
        f"the {name} in it takes {model.missing} for a missing number (its own missing=), and "
        "answers with its best iteration where training stopped early"
    )


def _objects(column: Column, values: np.ndarray) -> np.ndarray:
    """Python objects; what is missing is None or NaN, as it was in training."""
    held = values.astype(object)
    gone = values == MISSING
    if column.blank_missing:
        gone |= values == ""
    held[gone] = None if column.none else np.nan
    return held


def _blank(column: Column, rows: int) -> np.ndarray:
    """What stands in a column that the model drops."""
    return np.full(rows, "") if column.is_text else np.zeros(rows)


def _kind(path: Path, estimator: Any) -> str:
    from sklearn.base import is_classifier, is_outlier_detector, is_regressor

    what = type(estimator).__name__
    if not hasattr(estimator, "get_params"):
        raise SourceRefused(
            f"{path} holds a {what} and no estimator: save the fitted Pipeline or model itself "
            "with skops.io.dump(model, 'model.skops')"
        )
    if is_regressor(estimator):
        kind = "regressor"
    elif is_classifier(estimator):
        kind = "classifier"
    elif is_outlier_detector(estimator):
        kind = "outliers"
    elif _clusters(_last(estimator)):
        kind = "clusters"
    else:
        raise SourceRefused(f"{path} holds a {what}, {_why_no_kind(estimator)}")
    if what != "IsotonicRegression" and not _is_fitted(path, estimator):
        raise SourceRefused(
            f"{path} holds a {what} that was never fitted: fit it and save it again"
        )
    if what == "IsotonicRegression":
        raise SourceRefused(
            f"{path} holds an {what}, which takes one number and no columns: train a "
            "HistGradientBoostingRegressor(monotonic_cst=[1]) on the one column"
        )
    if kind == "classifier" and not (
        hasattr(estimator, "predict_proba") or hasattr(estimator, "decision_function")
    ):
        raise SourceRefused(
            f"{path} holds a {what} with neither predict_proba nor decision_function, so its "
            "answers have no scores: wrap it in sklearn.calibration.CalibratedClassifierCV"
        )
    if kind == "outliers" and not hasattr(estimator, "decision_function"):
        raise SourceRefused(
            f"{path} holds a {what} that judges the rows of its training alone: train it with "
            "novelty=True, or take an IsolationForest"
        )
    return kind


def _why_no_kind(estimator: Any) -> str:
    """Why it is none of the kinds that are served, and what to do."""
    if hasattr(estimator, "predict"):
        return (
            "whose answer has no scores and is no number to predict: take a classifier, a "
            "regressor, a KMeans, a GaussianMixture or an IsolationForest"
        )
    if hasattr(estimator, "transform"):
        return (
            "which prepares columns and predicts nothing: save the Pipeline that ends in a "
            "classifier or a regressor"
        )
    return (
        "which has no predict(), and so no answer for a new row: take a classifier, a regressor, a "
        "KMeans or an IsolationForest"
    )


def _clusters(model: Any) -> int:
    """How many clusters it parts rows into, each with a score; 0 where it does no such thing."""
    centres = getattr(model, "cluster_centers_", None)
    if centres is not None and hasattr(model, "transform"):
        return len(centres)
    if type(model).__name__ in ("GaussianMixture", "BayesianGaussianMixture"):
        return int(model.n_components)
    # Not fitted: for its own message.
    return 1 if type(model).__name__ in ("KMeans", "MiniBatchKMeans", "BisectingKMeans") else 0


def _last(model: Any) -> Any:
    while hasattr(model, "steps"):
        model = model.steps[-1][1]
    return model


def _is_fitted(path: Path, estimator: Any) -> bool:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(_last(estimator))  # a Pipeline's own check asks its last step alone
    except NotFittedError:
        return False
    inner, _ = without_target(path, estimator)
    return hasattr(inner, "n_features_in_") or bool(vectorizers_of(inner))


def _labels(path: Path, estimator: Any) -> tuple[str, ...]:
    classes = estimator.classes_
    if isinstance(classes, list) or np.ndim(classes) != 1:
        raise SourceRefused(f"{path} decides several things at once: train one model for each")
    labels = tuple(str(each) for each in classes)
    if len(set(labels)) < len(labels):
        raise SourceRefused(f"{path} has two classes that are written alike: {', '.join(labels)}")
    return labels
