"""What a fitted encoder of categories gives for each of them, asked of the encoder itself.

Nothing of its options (drop, rare categories, what is unknown, what is missing) is read here: each
category, one that it does not know and a missing one are transformed, and what comes is a table.
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
    what the encoder gives: first for an unknown one, then for each of ``known``, last for a
    missing one; NaN where it refuses."""

    known: tuple[Any, ...]
    rows: np.ndarray


def encoder_columns(encoder: Any) -> list[EncoderColumn]:
    """A column for each that a fitted OneHotEncoder, OrdinalEncoder or TargetEncoder takes."""
    return list(_columns(encoder))


def _columns(encoder: Any) -> Iterator[EncoderColumn]:
    categories = [list(each) for each in encoder.categories_]
    first = [each[0] for each in categories]
    kinds = [_kind_of(each) for each in categories]
    start = 0
    for place, held in enumerate(categories):
        known = tuple(each for each in held if not is_missing(each))
        gone = next((each for each in held if is_missing(each)), np.nan)
        width = _width(encoder, place)
        rows = []
        for value in (_unknown(known), *known, gone):
            row = [*first[:place], value, *first[place + 1 :]]
            encoded = _encoded(encoder, row, kinds)
            whole = np.full(width, np.nan) if encoded is None else encoded[start : start + width]
            rows.append(whole)
        start += width
        yield EncoderColumn(known, np.array(rows))


def _width(encoder: Any, place: int) -> int:
    if hasattr(encoder, "_n_features_outs"):
        return int(encoder._n_features_outs[place])
    if getattr(encoder, "target_type_", "") == "multiclass":
        raise SourceRefused(
            "a TargetEncoder of more than two classes has no converter: encode the column with a "
            "OneHotEncoder"
        )
    return 1


def _unknown(known: tuple[Any, ...]) -> Any:
    if all(isinstance(each, str) for each in known):
        return UNKNOWN
    return max(float(each) for each in known) + 1


def _kind_of(categories: list[Any]) -> type:
    """The type of a column that has these."""
    is_text = any(isinstance(each, str) or each is None for each in categories)
    return object if is_text else np.float64


def _encoded(encoder: Any, row: list[Any], kinds: list[type]) -> np.ndarray | None:
    """The encoder's numbers for one row; None where it refuses it."""
    import pandas as pd

    names = getattr(encoder, "feature_names_in_", None)
    if names is None:
        asked: Any = np.array([row], dtype=object)
        if object not in kinds:
            asked = asked.astype(np.float64)
    else:
        cells = zip(names, row, kinds, strict=True)
        asked = pd.DataFrame({name: np.array([value], kind) for name, value, kind in cells})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            encoded = encoder.transform(asked)
        except (ValueError, TypeError):
            return None
    dense = encoded.toarray() if hasattr(encoded, "toarray") else np.asarray(encoded)
    return np.asarray(dense[0], dtype=np.float64)
