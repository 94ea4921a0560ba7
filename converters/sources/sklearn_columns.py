"""Which columns a fitted scikit-learn model takes, and what it knows about each.

Read from the fitted transformers: a scaler's mean, an encoder's categories. Nothing else says which
columns are text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from converters.errors import SourceRefused
from converters.sources.vectorizers import is_vectorizer, words_of
from converters.table import Column

# What JSON and V2 can carry as a category.
CATEGORY_TYPES = (str, bool, int, float, np.bool_, np.integer, np.floating)
T = TypeVar("T")
MEMBER_MODELS = (
    "OneVsOneClassifier",
    "OneVsRestClassifier",
    "StackingClassifier",
    "StackingRegressor",
    "VotingClassifier",
    "VotingRegressor",
)


@dataclass(frozen=True)
class TransformerUse:
    """A fitted transformer, and the positions of the model's columns that it is the first to
    read."""

    transformer: Any
    positions: tuple[int, ...]


def column_names(model: Any) -> list[str]:
    """The names that the model was trained with, else f0, f1, ...; ["text"] for a vectorizer."""
    if not hasattr(model, "n_features_in_"):
        return ["text"]  # a vectorizer takes a list of texts, and has no columns
    if hasattr(model, "feature_names_in_"):
        return [str(name) for name in model.feature_names_in_]
    return [f"f{index}" for index in range(int(model.n_features_in_))]


def columns_of(model: Any) -> list[Column]:
    """Every column in the order of training, with what the transformers say about it."""
    names = column_names(model)
    columns = [Column(name) for name in names]
    for use in _uses(model, names, tuple(range(len(names)))):
        for index, position in enumerate(use.positions):
            columns[position] = _with_transformer(columns[position], use.transformer, index)
    return columns


def edges_of(model: Any) -> dict[str, np.ndarray]:
    """The numbers at which a step divides a column of the table, by the column's name: bin edges,
    quantiles, knots."""
    names = column_names(model)
    edges_by_name: dict[str, np.ndarray] = {}
    for use in _uses(model, names, tuple(range(len(names)))):
        for index, position in enumerate(use.positions):
            edges = _edges(use.transformer, index)
            if len(edges):
                known = edges_by_name.get(names[position], np.empty(0))
                edges_by_name[names[position]] = np.unique(np.concatenate([known, edges]))
    return edges_by_name


def _edges(transformer: Any, index: int) -> np.ndarray:
    match type(transformer).__name__:
        case "KBinsDiscretizer":
            return np.asarray(transformer.bin_edges_[index], np.float64)
        case "Binarizer":
            return np.array([float(transformer.threshold)])
        case "QuantileTransformer":
            return np.asarray(transformer.quantiles_[:, index], np.float64)
        case "SplineTransformer":
            return np.asarray(transformer.bsplines_[index].t, np.float64)
    return np.empty(0)


def vectorizers_of(model: Any) -> list[tuple[str, Any]]:
    """(column, vectorizer) for each text vectorizer."""
    names = column_names(model)
    uses = _uses(model, names, tuple(range(len(names))))
    return [
        (names[use.positions[0]], use.transformer) for use in uses if is_vectorizer(use.transformer)
    ]


def direct_columns(model: Any) -> set[str]:
    """The names of the columns that anything but a vectorizer reads."""
    names = column_names(model)
    uses = list(_uses(model, names, tuple(range(len(names)))))
    others = {
        position for use in uses if not is_vectorizer(use.transformer) for position in use.positions
    }
    if not any(is_vectorizer(use.transformer) for use in uses):
        return set(names)
    texts = {use.positions[0] for use in uses if is_vectorizer(use.transformer)}
    return {name for index, name in enumerate(names) if index in others or index not in texts}


def ignored_columns(model: Any) -> set[str]:
    """The columns that a ColumnTransformer at the front drops: clients need not send them."""
    front = _first_step(model)
    if not _is_column_transformer(front) or not hasattr(front, "feature_names_in_"):
        return set()
    names = column_names(front)
    used = {
        position
        for _, transformer, selector in front.transformers_
        if not (isinstance(transformer, str) and transformer == "drop")
        for position in _selected_positions(selector, names)
    }
    return {name for position, name in enumerate(names) if position not in used}


def takes_columns_by_name(model: Any) -> bool:
    """Whether a ColumnTransformer at the front, or at the front of a member, selects columns by
    name."""
    first = _first_step(model)
    return _is_column_transformer(first) or any(map(takes_columns_by_name, members_of(first)))


def members_of(model: Any) -> list[Any]:
    """The fitted estimators that are each given the model's own rows: of a calibration, a stack, a
    vote, one for each class."""
    if hasattr(model, "calibrated_classifiers_"):
        return [calibrated.estimator for calibrated in model.calibrated_classifiers_]
    if type(model).__name__ in MEMBER_MODELS:
        return [member for member in model.estimators_ if not isinstance(member, str)]
    return []


def _first_step(model: Any) -> Any:
    while hasattr(model, "steps"):
        model = model.steps[0][1]
    return model


def _is_column_transformer(model: Any) -> bool:
    return hasattr(model, "transformers_") and hasattr(model, "remainder")


def _uses(part: Any, names: Sequence[str], positions: tuple[int, ...]) -> Iterator[TransformerUse]:
    """``names`` and ``positions`` of the columns that ``part`` reads, in its order."""
    if isinstance(part, str):
        return
    if hasattr(part, "steps"):
        for _, step in part.steps:
            if getattr(step, "n_features_in_", len(positions)) != len(positions):
                return
            yield from _uses(step, names, positions)
            if not _preserves_columns(step):
                return
    elif _is_column_transformer(part):
        for _, transformer, selector in part.transformers_:
            selected = _selected_positions(selector, names)
            yield from _uses(
                transformer,
                [names[index] for index in selected],
                tuple(positions[index] for index in selected),
            )
    elif hasattr(part, "transformer_list"):
        for _, transformer in part.transformer_list:
            yield from _uses(transformer, names, positions)
    elif members := members_of(part):
        for member in members:
            yield from _uses(member, names, positions)
    else:
        yield TransformerUse(part, positions)


def _preserves_columns(step: Any) -> bool:
    """Whether column i after the step is still column i before it."""
    return isinstance(step, str) or type(step).__name__ in (
        "SimpleImputer",
        "StandardScaler",
        "MinMaxScaler",
        "RobustScaler",
        "MaxAbsScaler",
    )


def _selected_positions(selector: Any, names: Sequence[str]) -> list[int]:
    """The positions of a ColumnTransformer part's columns, from names, positions, a mask or a
    slice."""
    if isinstance(selector, slice):
        return list(range(len(names)))[selector]
    entries = np.atleast_1d(np.asarray(selector))
    if entries.dtype == bool:
        return list(map(int, np.flatnonzero(entries)))
    if entries.dtype.kind in "iu":
        return [int(position) % len(names) for position in entries]
    return [names.index(str(name)) for name in entries]


# Steps whose arithmetic ONNX Runtime repeats to the last bit: none, or one operation for a number.
EXACT_STEPS = (
    "SimpleImputer",
    "StandardScaler",
    "MinMaxScaler",
    "MaxAbsScaler",
    "RobustScaler",
    "OneHotEncoder",
    "OrdinalEncoder",
    "TargetEncoder",
    "KBinsDiscretizer",
    "Binarizer",
    "PolynomialFeatures",
    "MissingIndicator",
)


def rounds_before_the_end(model: Any) -> bool:
    """Whether a step before the last estimator computes what no two libraries round alike: sums
    over columns (PCA, Normalizer), exponentials, logarithms."""
    return any(_rounds(step) for _, step in getattr(model, "steps", [])[:-1])


def _rounds(part: Any) -> bool:
    if isinstance(part, str) or part is None:
        return False
    if hasattr(part, "steps"):
        return any(_rounds(step) for _, step in part.steps)
    if _is_column_transformer(part):
        return any(_rounds(transformer) for _, transformer, _ in part.transformers_)
    if hasattr(part, "transformer_list"):
        return any(_rounds(transformer) for _, transformer in part.transformer_list)
    if type(part).__name__ == "FunctionTransformer":
        return part.func is not None
    return type(part).__name__ not in EXACT_STEPS and not hasattr(part, "get_support")


def selected_columns(selector: Any, names: Sequence[str]) -> Any:
    """A ColumnTransformer part's selector; a mask, a slice or a function as positions."""
    if isinstance(selector, slice) or np.asarray(selector).dtype == bool:
        return _selected_positions(selector, names)
    return selector


def _with_transformer(column: Column, transformer: Any, index: int) -> Column:
    if hasattr(transformer, "categories_"):
        return _with_categories(column, transformer, transformer.categories_[index])
    if is_vectorizer(transformer):
        words = dict.fromkeys((*column.words, *words_of(transformer)))
        return replace(column, is_text=True, words=tuple(words))
    if hasattr(transformer, "statistics_"):
        fill_value = np.asarray(transformer.statistics_)[index]
        if isinstance(fill_value, str):
            return _with_missing(replace(column, is_text=True), [transformer.missing_values])
        return _with_scale(column, fill_value, None)
    for centre_name, spread_name in (
        ("mean_", "scale_"),
        ("center_", "scale_"),
        ("data_min_", "data_range_"),
    ):
        if getattr(transformer, centre_name, None) is not None:
            all_spreads = getattr(transformer, spread_name, None)
            centre_value = getattr(transformer, centre_name)[index]
            spread_value = None if all_spreads is None else all_spreads[index]
            return _with_scale(column, centre_value, spread_value)
    return column


def _with_categories(column: Column, encoder: Any, categories: Any) -> Column:
    is_open = getattr(encoder, "handle_unknown", "error") != "error"
    present = [category for category in categories if not is_missing(category)]
    missing = [category for category in categories if is_missing(category)]
    texts = tuple(str(category) for category in present if isinstance(category, str))
    strange = next((value for value in present if not isinstance(value, CATEGORY_TYPES)), None)
    if strange is not None:
        # A client can only send a text or a number, which such an encoder never knows.
        raise SourceRefused(
            f"the column {column.name!r} has categories of type {type(strange).__name__}, which a "
            "client cannot send: convert them to text or numbers before training (a date to its "
            "year, month and weekday), and train again"
        )
    if texts and len(texts) < len(present):
        raise SourceRefused(
            f"the column {column.name!r} has both texts and numbers as categories: convert all of "
            "them to text, and train again"
        )
    if texts or np.asarray(categories).dtype.kind in "US":
        known_texts, is_open = _known_to_all(column, column.categories, texts, is_open=is_open)
        column = replace(column, is_text=True, categories=known_texts, open=is_open)
        return _with_missing(column, missing)
    numbers = tuple(float(category) for category in present)
    known, is_open = _known_to_all(column, column.values, numbers, is_open=is_open)
    are_objects = column.are_objects or np.asarray(categories).dtype == object
    column = replace(column, values=known, open=is_open, are_objects=are_objects)
    return _with_missing(column, missing)


def _known_to_all(
    column: Column, before: tuple[T, ...], categories: tuple[T, ...], *, is_open: bool
) -> tuple[tuple[T, ...], bool]:
    """The categories of a column that another encoder may read too, which knows ``before``; and
    whether both accept others: one that does not decides what a client may send."""
    if column.open and is_open:
        return tuple(dict.fromkeys((*before, *categories))), True
    if column.open:
        return categories, False
    if is_open:
        return before, False
    return tuple(category for category in before if category in categories), False


def _with_missing(column: Column, values: Sequence[Any]) -> Column:
    """The column, where a step treats these values specially; SourceRefused for one that tells None
    from NaN."""
    kinds = {value is None for value in values if is_missing(value)}
    if column.none is not None:
        kinds.add(column.none)
    if len(kinds) > 1:
        raise SourceRefused(
            f"the column {column.name!r} has both None and NaN as missing values (categories, or "
            "missing_values= of a SimpleImputer), and a client can only say that a value is "
            "missing: use one of them, and train again"
        )
    return replace(column, none=kinds.pop() if kinds else None)


def is_missing(value: Any) -> bool:
    """Whether the value is None or NaN."""
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def _with_scale(column: Column, centre: Any, spread: Any) -> Column:
    new_centre = float(centre) if np.isfinite(centre) else column.centre
    new_spread = float(spread) if spread is not None and np.isfinite(spread) else column.spread
    return replace(column, centre=new_centre, spread=new_spread)
