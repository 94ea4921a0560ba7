"""What a fitted category encoder gives for each category, as the encoder itself computes it.

None of its options (drop, rare categories, unknown and missing ones) is read here: each category,
an unknown one and a missing one are transformed, and the results form a table.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.errors import SourceRefused
from converters.sources.sklearn_columns import is_missing

UNKNOWN = "\ufdd1 never seen"


@dataclass(frozen=True)
class EncoderColumn:
    """``known`` are the categories, without a missing one. ``rows`` FP64 [len(known) + 2, width] is
    what the encoder gives: first for an unknown category, then for each of ``known``, last for a
    missing one; NaN where it refuses."""

    known: tuple[Any, ...]
    rows: np.ndarray


def encoder_columns(encoder: Any) -> list[EncoderColumn]:
    """An EncoderColumn for each column of a fitted OneHotEncoder, OrdinalEncoder or
    TargetEncoder."""
    return list(_columns(encoder))


def _columns(encoder: Any) -> Iterator[EncoderColumn]:
    categories = [list(column) for column in encoder.categories_]
    first = [column[0] for column in categories]
    dtypes = [_dtype_of(column) for column in encoder.categories_]
    start = 0
    for position, column_categories in enumerate(categories):
        known = tuple(value for value in column_categories if not is_missing(value))
        missing = next((value for value in column_categories if is_missing(value)), np.nan)
        width = _width(encoder, position)
        rows = []
        for value in (_unknown(known), *known, missing):
            row = [*first[:position], value, *first[position + 1 :]]
            encoded = _encoded(encoder, row, dtypes)
            cells = np.full(width, np.nan) if encoded is None else encoded[start : start + width]
            rows.append(cells)
        start += width
        yield EncoderColumn(known, np.array(rows))


def _width(encoder: Any, position: int) -> int:
    if hasattr(encoder, "_n_features_outs"):
        return int(encoder._n_features_outs[position])
    if getattr(encoder, "target_type_", "") == "multiclass":
        raise SourceRefused(
            "a TargetEncoder for more than two classes has no converter: encode the column with a "
            "OneHotEncoder"
        )
    return 1


def _unknown(known: tuple[Any, ...]) -> Any:
    if all(isinstance(category, str) for category in known):
        return UNKNOWN
    return max(float(category) for category in known) + 1


def _dtype_of(categories: Any) -> type:
    """The NumPy type of a column with these categories."""
    return object if np.asarray(categories).dtype.kind in "OUS" else np.float64


def _encoded(encoder: Any, row: list[Any], dtypes: list[type]) -> np.ndarray | None:
    """The encoder's output for one row; None if it refuses the row."""
    import pandas as pd

    names = getattr(encoder, "feature_names_in_", None)
    if names is None:
        rows: Any = np.array([row], dtype=object)
        if object not in dtypes:
            rows = rows.astype(np.float64)
    else:
        cells = zip(names, row, dtypes, strict=True)
        rows = pd.DataFrame({name: np.array([value], dtype) for name, value, dtype in cells})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            encoded = encoder.transform(rows)
        except (ValueError, TypeError):
            return None
    dense = encoded.toarray() if hasattr(encoded, "toarray") else np.asarray(encoded)
    return np.asarray(dense[0], dtype=np.float64)
