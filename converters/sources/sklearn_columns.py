"""Which columns a fitted scikit-learn model takes, and what it knows of each.

Read from the fitted transformers: a scaler's mean, an encoder's categories. Nothing else knows
which columns are text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from converters.errors import SourceRefused
from converters.tabular.table import Column
from converters.tabular.vectorizers import is_vectorizer, words_of


@dataclass(frozen=True)
class Use:
    """One fitted transformer and the places of the columns that it takes first."""

    transformer: Any
    positions: tuple[int, ...]


def column_names(model: Any) -> list[str]:
    """The names that the model was trained with, else f0, f1, ..."""
    if not hasattr(model, "n_features_in_"):
        return ["text"]  # a vectorizer takes a list of texts, and has no columns
    if hasattr(model, "feature_names_in_"):
        return [str(name) for name in model.feature_names_in_]
    return [f"f{index}" for index in range(int(model.n_features_in_))]


def columns_of(model: Any) -> list[Column]:
    """Every column in the order of training, with what the transformers say of it."""
    names = column_names(model)
    columns = [Column(name) for name in names]
    for use in _uses(model, names, tuple(range(len(names)))):
        for index, place in enumerate(use.positions):
            columns[place] = _described(columns[place], use.transformer, index)
    return columns


def edges_of(model: Any) -> dict[str, np.ndarray]:
    """The numbers at which a step parts a column of the table, by the column's name: edges of bins,
    quantiles, knots."""
    names = column_names(model)
    found: dict[str, np.ndarray] = {}
    for use in _uses(model, names, tuple(range(len(names)))):
        for index, place in enumerate(use.positions):
            edges = _edges(use.transformer, index)
            if len(edges):
                held = found.get(names[place], np.empty(0))
                found[names[place]] = np.unique(np.concatenate([held, edges]))
    return found


def _edges(part: Any, index: int) -> np.ndarray:
    match type(part).__name__:
        case "KBinsDiscretizer":
            return np.asarray(part.bin_edges_[index], np.float64)
        case "Binarizer":
            return np.array([float(part.threshold)])
        case "QuantileTransformer":
            return np.asarray(part.quantiles_[:, index], np.float64)
        case "SplineTransformer":
            return np.asarray(part.bsplines_[index].t, np.float64)
    return np.empty(0)


def vectorizers_of(model: Any) -> list[tuple[str, Any]]:
    """(column, vectorizer) for each vectorizer of texts."""
    names = column_names(model)
    uses = _uses(model, names, tuple(range(len(names))))
    return [
        (names[use.positions[0]], use.transformer) for use in uses if is_vectorizer(use.transformer)
    ]


def direct_columns(model: Any) -> set[str]:
    """The columns that something else than a vectorizer reads."""
    names = column_names(model)
    uses = list(_uses(model, names, tuple(range(len(names)))))
    others = {p for use in uses if not is_vectorizer(use.transformer) for p in use.positions}
    if not any(is_vectorizer(use.transformer) for use in uses):
        return set(names)
    texts = {use.positions[0] for use in uses if is_vectorizer(use.transformer)}
    return {name for place, name in enumerate(names) if place in others or place not in texts}


def ignored_columns(model: Any) -> set[str]:
    """Columns that a ColumnTransformer at the front drops: nobody need send them."""
    front = _front(model)
    if not _is_column_transformer(front) or not hasattr(front, "feature_names_in_"):
        return set()
    names = column_names(front)
    used = {
        place
        for _, part, chosen in front.transformers_
        if not (isinstance(part, str) and part == "drop")
        for place in _places(chosen, names)
    }
    return {name for place, name in enumerate(names) if place not in used}


def takes_columns_by_name(model: Any) -> bool:
    """Whether a ColumnTransformer at the front tells the columns apart."""
    return _is_column_transformer(_front(model))


def _front(model: Any) -> Any:
    while hasattr(model, "steps"):
        model = model.steps[0][1]
    return model


def _is_column_transformer(model: Any) -> bool:
    return hasattr(model, "transformers_") and hasattr(model, "remainder")


def _uses(part: Any, names: Sequence[str], positions: tuple[int, ...]) -> Iterator[Use]:
    if isinstance(part, str):
        return
    if hasattr(part, "steps"):
        for _, step in part.steps:
            if getattr(step, "n_features_in_", len(positions)) != len(positions):
                return
            yield from _uses(step, names, positions)
            if not _keeps_columns(step):
                return
    elif _is_column_transformer(part):
        for _, each, chosen in part.transformers_:
            yield from _uses(each, names, tuple(positions[i] for i in _places(chosen, names)))
    elif hasattr(part, "transformer_list"):
        for _, each in part.transformer_list:
            yield from _uses(each, names, positions)
    else:
        yield Use(part, positions)


def _keeps_columns(step: Any) -> bool:
    """Whether column i after the step is still column i before it."""
    return isinstance(step, str) or type(step).__name__ in (
        "SimpleImputer",
        "StandardScaler",
        "MinMaxScaler",
        "RobustScaler",
        "MaxAbsScaler",
    )


def _places(chosen: Any, names: Sequence[str]) -> list[int]:
    """The columns of a ColumnTransformer's part: names, places, a mask or a slice."""
    if isinstance(chosen, slice):
        return list(range(len(names)))[chosen]
    listed = np.atleast_1d(np.asarray(chosen))
    if listed.dtype == bool:
        return list(map(int, np.flatnonzero(listed)))
    if listed.dtype.kind in "iu":
        return [int(place) % len(names) for place in listed]
    return [names.index(str(name)) for name in listed]


def _described(column: Column, transformer: Any, index: int) -> Column:
    if hasattr(transformer, "categories_"):
        return _with_categories(column, transformer, transformer.categories_[index])
    if is_vectorizer(transformer):
        words = dict.fromkeys((*column.words, *words_of(transformer)))
        return replace(column, is_text=True, words=tuple(words))
    if hasattr(transformer, "statistics_"):
        filled = np.asarray(transformer.statistics_)[index]
        if isinstance(filled, str):
            mark = transformer.missing_values
            return replace(column, is_text=True, blank_missing=is_missing(mark), none=mark is None)
        return _with_scale(column, filled, None)
    for centre, spread in (
        ("mean_", "scale_"),
        ("center_", "scale_"),
        ("data_min_", "data_range_"),
    ):
        if getattr(transformer, centre, None) is not None:
            spreads = getattr(transformer, spread, None)
            middle = getattr(transformer, centre)[index]
            return _with_scale(column, middle, None if spreads is None else spreads[index])
    return column


def _with_categories(column: Column, encoder: Any, known: Any) -> Column:
    takes_others = getattr(encoder, "handle_unknown", "error") != "error"
    held = [each for each in known if not is_missing(each)]
    gone = [each for each in known if is_missing(each)]
    texts = tuple(str(each) for each in held if isinstance(each, str))
    if len(gone) > 1:
        raise SourceRefused(
            f"the column {column.name!r} has both None and NaN among its categories, and a client "
            "can only say that a value is missing: make them one, and train again"
        )
    if texts and len(texts) < len(held):
        raise SourceRefused(
            f"the column {column.name!r} has texts and numbers among its categories: make all of "
            "them texts, and train again"
        )
    if texts or np.asarray(known).dtype.kind in "US":
        none = any(each is None for each in gone)
        return replace(column, is_text=True, categories=texts, open=takes_others, none=none)
    numbers = tuple(float(each) for each in held)
    return replace(column, values=numbers, open=takes_others)


def is_missing(value: Any) -> bool:
    """None or NaN."""
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def _with_scale(column: Column, centre: Any, spread: Any) -> Column:
    middle = float(centre) if np.isfinite(centre) else column.centre
    width = float(spread) if spread is not None and np.isfinite(spread) else column.spread
    return replace(column, centre=middle, spread=width)
