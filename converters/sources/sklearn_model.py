"""A scikit-learn classifier, regressor, outlier detector or clusterer, or a Pipeline that ends in
one, from a skops file."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from converters.errors import SourceMissing, SourceRefused
from converters.sources.sklearn_boosters import (
    XGBOOST,
    booster_model,
    boosters_in,
    categorical_model,
    require_no_categories,
)
from converters.sources.sklearn_columns import (
    columns_of,
    direct_columns,
    edges_of,
    ignored_columns,
    rounds_before_the_end,
    takes_columns_by_name,
    vectorizers_of,
)
from converters.sources.sklearn_target import with_target, without_target
from converters.sources.sklearn_trees import (
    TreeSum,
    estimator_thresholds,
    has_jumps,
    mixes_kinds,
    tree_sums,
)
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

THRESHOLDS = ("FixedThresholdClassifier", "TunedThresholdClassifierCV")


def open_skops(path: Path) -> TabularModel:
    """The model in the file: a booster that splits on categories as its library's own model, any
    other as a SklearnModel."""
    estimator, remarks = load_skops(path)
    categorical = categorical_model(path, estimator)
    if categorical is None:
        return SklearnModel(path, estimator, remarks)
    categorical.remarks = (*categorical.remarks, *remarks)
    return categorical


class SklearnModel(TabularModel):
    library: ClassVar[str] = "scikit-learn"

    def __init__(self, path: Path, estimator: Any, remarks: Sequence[str] = ()) -> None:
        self.path = path
        self.estimator, self.remarks = estimator, tuple(remarks)
        self.kind = _kind(path, self.estimator)
        # The estimator that predicts, without its wrappers; ``_target_transform`` leads from
        # its output to the target.
        self.inner, self._target_transform = without_target(path, self.estimator)
        if type(self.last).__name__ == "IsolationForest":
            self._target_transform = None, (1.0, -float(self.last.offset_))
        elif self.kind == "clusters" and not hasattr(self.last, "predict_proba"):
            self._target_transform = None, (-1.0, 0.0)  # the nearest centre has the highest score
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
        if self.vectorizers and type(self.last).__name__.startswith(("KNeighbors", "RadiusNeigh")):
            raise SourceRefused(
                f"{path} looks for the nearest texts, and many are equally far (all those without "
                "a common word): which of them scikit-learn takes is an accident of its sorting, "
                "which no graph repeats; train a LogisticRegression or a LinearSVC on the texts"
            )
        self.only_texts = not hasattr(self.inner, "n_features_in_")
        ignored = ignored_columns(self.inner)
        self.columns = tuple(column for column in self._trained if column.name not in ignored)
        self.steps = has_jumps(self.inner)
        self.rounds = self.steps and (rounds_before_the_end(self.inner) or mixes_kinds(self.last))
        # Every trained row is equally far from a far number.
        self.far = not type(self.last).__name__.startswith("KNeighbors")
        self.labels = ()
        if self.kind == "classifier":
            self.labels = _labels(path, self.estimator)
        if self.kind == "clusters":
            self.labels = tuple(map(str, range(_cluster_count(self.last))))
            # A distance is computed from three squares, whose rounding dominates for far numbers,
            # as it does in a full covariance.
            covariance = getattr(self.last, "covariance_type", "full")
            self.far = hasattr(self.last, "predict_proba") and covariance in ("diag", "spherical")
        self.remarks = (*self.remarks, *KIND_REMARKS.get(self.kind, ()))
        self.margins = self.kind == "classifier" and not hasattr(self.estimator, "predict_proba")
        if self.margins:
            remark = (
                "scores are margins (decision_function), not probabilities; -d and d for two labels"
            )
            self.remarks = (*self.remarks, remark)
        self.remarks = (*self.remarks, *_threshold_remarks(self.estimator))
        self.boosters = list(boosters_in(self.inner))
        for booster in self.boosters:
            require_no_categories(booster, booster_model(booster))
        self.remarks = (*self.remarks, *map(_booster_remark, self.boosters))
        self._require_one_label()

    def _require_one_label(self) -> None:
        """Raise SourceRefused for a classifier that gives a row several labels: its classes do not
        always show it."""
        if self.kind != "classifier":
            return
        try:
            predicted = self.estimator.predict(self._frame(ordinary_row(self.columns)))
        except Exception:  # the model may refuse this row, for which it gets its own message
            return
        if np.ndim(predicted) != 1:
            raise SourceRefused(
                f"{self.path} predicts several labels per row: train one model for each"
            )

    @property
    def last(self) -> Any:
        """The estimator at the end of the pipeline."""
        return _last(self.inner)

    def scores(self, table: Table) -> np.ndarray:
        return self._scores_of(self.estimator, self._frame(table), len(table))

    def moved(self, table: Table, by: np.ndarray) -> np.ndarray | None:
        if self.estimator is not self.inner:
            return None
        rows, last = self._last_input(table), self.last
        if hasattr(last, "final_estimator_"):
            rows, last = last.transform(rows), last.final_estimator_
        try:
            rows = rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows, np.float64)
        except ValueError:  # texts, which the last step's members encode themselves
            return None
        return self._scores_of(last, rows * by[np.arange(rows.shape[1]) % len(by)], len(table))

    def _scores_of(self, estimator: Any, rows: Any, count: int) -> np.ndarray:
        """The prediction of the model, or of its last step, for ``count`` rows as it takes them."""
        if self.kind == "clusters" and not hasattr(self.last, "predict_proba"):
            return -np.asarray(estimator.transform(rows), dtype=np.float64)
        if self.kind == "outliers":
            return np.asarray(estimator.decision_function(rows)).reshape(-1, 1)
        if self.margins:
            margins = np.asarray(estimator.decision_function(rows), dtype=np.float64)
            return margins if margins.ndim > 1 else np.stack([-margins, margins], axis=1)
        if self.labels:
            return np.asarray(estimator.predict_proba(rows), dtype=np.float64)
        values = np.asarray(estimator.predict(rows), dtype=np.float64)
        if values.ndim > 1 and values.shape[1] > 1:
            raise SourceRefused(
                f"{self.path} predicts {values.shape[1]} values per row: train one model for each"
            )
        return values.reshape(count, 1)

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

    @cached_property
    def _tree_sums(self) -> list[TreeSum]:
        """Read once: a booster writes itself out as JSON for it, and ``forest`` is asked for the
        trees' inputs hundreds of times."""
        return tree_sums(self.last)

    def forest(self, table: Table) -> Forest | None:
        sums = self._tree_sums
        if not sums:
            return None
        narrow = all(summed.narrow for summed in sums)
        marks = set.intersection(*(set(summed.missing) for summed in sums))
        is_alone = self.inner is self.last
        rows = self._last_input(table)
        dense = rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows, np.float64)
        with np.errstate(over="ignore"):
            numbers = dense.astype(np.float32 if narrow else np.float64).astype(np.float64)
        zero_is_missing = hasattr(rows, "toarray") and type(self.last).__name__ in XGBOOST
        numbers[np.isin(numbers, [*marks, *([0.0] if zero_is_missing else [])])] = np.nan
        return Forest([tree for summed in sums for tree in summed.trees], numbers, is_alone)

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
            if any(column.is_text or column.are_objects for column in self._trained):
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
        objects = {
            column.name: _objects(column, values_by_name[column.name])
            for column in self._trained
            if column.is_text or column.are_objects
        }
        return pd.DataFrame({**values_by_name, **objects})


def _threshold_remarks(estimator: Any) -> Iterator[str]:
    """What predict() of a FixedThresholdClassifier or a TunedThresholdClassifierCV at the end does,
    which is given the same scores as without it."""
    wrapper = _last(estimator)
    if type(wrapper).__name__ not in THRESHOLDS:
        return
    tuned = hasattr(wrapper, "best_threshold_")
    threshold: Any = wrapper.best_threshold_ if tuned else wrapper.threshold
    if threshold == "auto":
        return
    positive = getattr(wrapper, "pos_label", None)
    label = wrapper.classes_[1] if positive is None else positive
    yield (
        f"predict() of the {type(wrapper).__name__} says {str(label)!r} where its score is at "
        f"least {float(threshold):.6g}; the scores themselves do not depend on that"
    )


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
    is_missing = values == MISSING if column.is_text else np.isnan(values)
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
    first = type(_first(estimator)).__name__
    if first in ("DictVectorizer", "FeatureHasher"):
        raise SourceRefused(
            f"{path} begins with a {first}, which takes dictionaries, and a client sends named "
            "columns: train on a DataFrame, with a OneHotEncoder in a ColumnTransformer"
        )
    if not _is_fitted(path, estimator):
        raise SourceRefused(
            f"{path} holds a {name} that was never fitted: fit it and save it again"
        )
    if kind == "classifier" and not (
        hasattr(estimator, "predict_proba") or hasattr(estimator, "decision_function")
    ):
        remedy = (
            "train it with voting='soft'"
            if type(_last(estimator)).__name__ == "VotingClassifier"
            else "use an estimator that has one of them"
        )
        raise SourceRefused(
            f"{path} holds a {name} with neither predict_proba nor decision_function, so its "
            f"predictions have no scores: {remedy}"
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


def _first(model: Any) -> Any:
    while hasattr(model, "steps"):
        model = model.steps[0][1]
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
