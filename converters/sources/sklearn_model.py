"""A scikit-learn classifier, regressor, outlier detector or clusterer, or a Pipeline that ends in
one, from a skops file."""

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
from converters.sources.vectorizers import vectorizer_document, vocabulary_note
from converters.table import MISSING, Column, Table, ordinary_row

KIND_REMARKS = {
    "outliers": (
        "the value is decision_function: the lower, the more abnormal; below 0 it is an outlier, "
        "and predict() gives -1",
    ),
    "clusters": (
        "labels are the cluster numbers. Scores are predict_proba, or, for a model without it "
        "(KMeans), minus the distance to the cluster's centre (transform)",
    ),
}


class SklearnModel(TabularModel):
    library: ClassVar[str] = "scikit-learn"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.estimator, self.remarks = load_skops(path)
        self.kind = _kind(path, self.estimator)
        # The estimator that predicts, without its wrappers; ``_target_transform`` leads from
        # its output to the target.
        self.inner, self._target_transform = without_target(path, self.estimator)
        if type(self.last).__name__ == "IsolationForest":
            self._target_transform = None, (1.0, -float(self.last.offset_))
        self._trained = columns_of(self.inner)
        # One tensor cannot hold both texts and numbers, and a ColumnTransformer selects by name.
        has_text = any(column.is_text for column in self._trained)
        self.by_name = takes_columns_by_name(self.inner) or has_text
        if self.by_name:
            self.order = tuple(column.name for column in self._trained)
        # (column, vectorizer) for each vectorizer of texts.
        self.vectorizers = vectorizers_of(self.inner)
        for _, vectorizer in self.vectorizers:
            vectorizer_document(vectorizer)
        self.only_texts = not hasattr(self.inner, "n_features_in_")
        ignored = ignored_columns(self.inner)
        self.columns = tuple(column for column in self._trained if column.name not in ignored)
        self.steps = has_jumps(self.inner)
        self.labels = ()
        if self.kind == "classifier":
            self.labels = _labels(path, self.estimator)
        if self.kind == "clusters":
            self.labels = tuple(map(str, range(_cluster_count(self.last))))
            # A distance is computed from three squares, whose rounding dominates for far numbers.
            self.far = hasattr(self.last, "predict_proba")
        self.remarks = (*self.remarks, *KIND_REMARKS.get(self.kind, ()))
        self.margins = self.kind == "classifier" and not hasattr(self.estimator, "predict_proba")
        if self.margins:
            remark = (
                "scores are margins (decision_function), not probabilities; -d and d for two labels"
            )
            self.remarks = (*self.remarks, remark)
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
                f"{self.path} predicts {values.shape[1]} values per row: train one model for each"
            )
        return values.reshape(len(table), 1)

    def decide(self, table: Table) -> np.ndarray:
        index_of = {label: index for index, label in enumerate(self.labels)}
        predicted = self.estimator.predict(self._frame(table))
        return np.array([index_of[str(label)] for label in predicted], dtype=np.int64)

    def graph(self) -> onnx.ModelProto:
        from converters.sources.sklearn2onnx import convert_estimator

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
        # For two classes ONNX Runtime's support vectors give d and -d.
        is_negated = self.margins and type(self.last).__name__ in ("SVC", "NuSVC")
        if is_negated and len(self.labels) == 2:
            return with_target(graph, (np.negative, (1.0, 0.0)))
        return with_target(graph, self._target_transform)

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
        thresholds = estimator_thresholds(self.last, len(self._trained))
        names = (column.name for column in self._trained)
        return dict(zip(names, thresholds, strict=True))

    def forest(self, table: Table) -> Forest | None:
        try:
            tree_model = tree_sum(self.last)
        except (AttributeError, SourceRefused):
            return None
        is_alone = self.inner is self.last
        rows = self._last_input(table)
        dense = rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows, np.float64)
        with np.errstate(over="ignore"):
            numbers = dense.astype(np.float32 if tree_model.narrow else np.float64).astype(
                np.float64
            )
        zero_is_missing = hasattr(rows, "toarray") and type(self.last).__name__ in XGBOOST
        missing = (*tree_model.missing, 0.0) if zero_is_missing else tree_model.missing
        numbers[np.isin(numbers, missing)] = np.nan
        return Forest(tree_model.trees, numbers, is_alone)

    def marks(self) -> Mapping[str, Sequence[float]]:
        """The numbers that the boosters read as missing."""
        numbers = [float(getattr(booster, "missing", np.nan)) for booster in self.boosters]
        distinct = tuple(number for number in dict.fromkeys(numbers) if not np.isnan(number))
        return {
            column.name: distinct for column in self._trained if distinct and not column.is_text
        }

    def _last_input(self, table: Table) -> Any:
        """The last estimator's input for these rows."""
        rows, model = self._frame(table), self.inner
        while hasattr(model, "steps"):
            preprocessing, model = model[:-1], model.steps[-1][1]
            rows = preprocessing.transform(rows) if len(preprocessing) else rows
        return rows

    def _gives_sparse_rows(self) -> bool:
        """Whether the steps before a booster give it sparse rows."""
        if not self.boosters or self.inner is self.last:
            return False
        return hasattr(self._last_input(ordinary_row(self.columns)), "toarray")

    def _frame(self, table: Table) -> Any:
        """The rows in the form that the model was trained on: a DataFrame if it knows its columns'
        names."""
        if self.only_texts:
            return [str(text) for text in table.columns[self._trained[0].name]]
        values_by_name = {
            column.name: table.columns.get(column.name, _blank(column, len(table)))
            for column in self._trained
        }
        if not hasattr(self.inner, "feature_names_in_"):
            if any(column.is_text for column in self._trained):
                columns = [
                    _objects(column, values_by_name[column.name]) for column in self._trained
                ]
                return np.stack(columns, axis=1)
            return np.stack(list(values_by_name.values()), axis=1)
        try:
            import pandas as pd
        except ImportError:
            raise SourceMissing(
                f"{self.path} was trained on named columns, which needs pandas: pip install pandas"
            ) from None
        texts = {
            column.name: _objects(column, values_by_name[column.name])
            for column in self._trained
            if column.is_text
        }
        return pd.DataFrame({**values_by_name, **texts})


def _booster_remark(model: Any) -> str:
    name = type(model).__name__
    if name not in XGBOOST:
        return f"its {name} predicts with its best iteration, as its predict() does"
    return (
        f"its {name} reads {model.missing} as a missing number (its own missing=), and predicts "
        "with its best iteration if training stopped early"
    )


def _objects(column: Column, values: np.ndarray) -> np.ndarray:
    """The values as Python objects; a missing one is None or NaN, as in training."""
    objects = values.astype(object)
    is_missing = values == MISSING
    if column.blank_missing:
        is_missing |= values == ""
    objects[is_missing] = None if column.none else np.nan
    return objects


def _blank(column: Column, rows: int) -> np.ndarray:
    """Values for a column that the model drops."""
    return np.full(rows, "") if column.is_text else np.zeros(rows)


def _kind(path: Path, estimator: Any) -> str:
    from sklearn.base import is_classifier, is_outlier_detector, is_regressor

    name = type(estimator).__name__
    if not hasattr(estimator, "get_params"):
        raise SourceRefused(
            f"{path} holds a {name}, which is not an estimator: save the fitted Pipeline or model "
            "itself with skops.io.dump(model, 'model.skops')"
        )
    if is_regressor(estimator):
        kind = "regressor"
    elif is_classifier(estimator):
        kind = "classifier"
    elif is_outlier_detector(estimator):
        kind = "outliers"
    elif _cluster_count(_last(estimator)):
        kind = "clusters"
    else:
        raise SourceRefused(f"{path} holds a {name}, {_why_not_served(estimator)}")
    if name == "IsotonicRegression":
        raise SourceRefused(
            f"{path} holds an {name}, which takes a single number instead of columns: train a "
            "HistGradientBoostingRegressor(monotonic_cst=[1]) on that column"
        )
    if not _is_fitted(path, estimator):
        raise SourceRefused(
            f"{path} holds a {name} that was never fitted: fit it and save it again"
        )
    if kind == "classifier" and not (
        hasattr(estimator, "predict_proba") or hasattr(estimator, "decision_function")
    ):
        raise SourceRefused(
            f"{path} holds a {name} with neither predict_proba nor decision_function, so its "
            "predictions have no scores: wrap it in sklearn.calibration.CalibratedClassifierCV"
        )
    if kind == "outliers" and not hasattr(estimator, "decision_function"):
        raise SourceRefused(
            f"{path} holds a {name} that only judges its training rows: train it with "
            "novelty=True, or use an IsolationForest"
        )
    return kind


def _why_not_served(estimator: Any) -> str:
    """Say why the estimator is of none of the kinds that are served, and what to do."""
    if hasattr(estimator, "predict"):
        return (
            "whose prediction is neither a number nor a label with scores: use a classifier, a "
            "regressor, a KMeans, a GaussianMixture or an IsolationForest"
        )
    if hasattr(estimator, "transform"):
        return (
            "which prepares columns and predicts nothing: save the Pipeline that ends in a "
            "classifier or a regressor"
        )
    return (
        "which has no predict(), and so no prediction for a new row: use a classifier, a "
        "regressor, a KMeans or an IsolationForest"
    )


def _cluster_count(model: Any) -> int:
    """How many clusters the model assigns rows to, with a score for each; 0 if it is not such a
    model."""
    centres = getattr(model, "cluster_centers_", None)
    if centres is not None and hasattr(model, "transform"):
        return len(centres)
    if type(model).__name__ in ("GaussianMixture", "BayesianGaussianMixture"):
        return int(model.n_components)
    # An unfitted model: it gets its own message later.
    return 1 if type(model).__name__ in ("KMeans", "MiniBatchKMeans", "BisectingKMeans") else 0


def _last(model: Any) -> Any:
    while hasattr(model, "steps"):
        model = model.steps[-1][1]
    return model


def _is_fitted(path: Path, estimator: Any) -> bool:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(_last(estimator))  # a Pipeline's own check looks at its last step alone
    except NotFittedError:
        return False
    inner, _ = without_target(path, estimator)
    return hasattr(inner, "n_features_in_") or bool(vectorizers_of(inner))


def _labels(path: Path, estimator: Any) -> tuple[str, ...]:
    classes = estimator.classes_
    if isinstance(classes, list) or np.ndim(classes) != 1:
        raise SourceRefused(f"{path} predicts several labels per row: train one model for each")
    labels = tuple(str(name) for name in classes)
    if len(set(labels)) < len(labels):
        raise SourceRefused(
            f"{path} has two classes that are written alike ({', '.join(labels)}): rename one, and "
            "train again"
        )
    return labels
