"""How near two sets of answers are: the checks that every task shares."""

from collections.abc import Sequence

import numpy as np

from converters.closeness import decided, row_cosines, row_gaps, same_best
from converters.proof import Check, at_least, at_most
from converters.tolerance import Tolerance, clear_margin


def mean_difference(name: str, got: np.ndarray, wanted: np.ndarray, limit: float) -> Check:
    """The largest difference of each row of two arrays [n, ...], averaged over the rows: it does
    not depend on how many classes or elements a row has."""
    if got.shape != wanted.shape:
        return _wrong_shape(name, got, wanted, limit)
    return at_most(name, float(row_gaps(got, wanted).mean()), limit)


def lowest_cosine(
    name: str, got: np.ndarray, wanted: np.ndarray, limit: float, labels: Sequence[str]
) -> Check:
    """The lowest cosine between rows of two arrays [n, width], and whose it is."""
    if got.shape != wanted.shape:
        return _wrong_shape(name, got, wanted, limit)
    cosine = row_cosines(got, wanted)
    # argmin finds a NaN first, and NaN passes no limit.
    row = int(cosine.argmin())
    return at_least(name, cosine[row], limit, repr(labels[row][:60]))


def same_decision(
    name: str, got: np.ndarray, wanted: np.ndarray, allowed: Tolerance, labels: Sequence[str]
) -> Check:
    """The share of rows [n, classes] whose largest element is at the same place, of those where the
    original's best leads clearly (``tolerance.clear_margin``)."""
    if got.shape != wanted.shape:
        return _wrong_shape(name, got, wanted, allowed.agreement)
    clear = decided(wanted, clear_margin(allowed))
    flipped = ~same_best(got, wanted) & clear
    worst = repr(labels[int(flipped.argmax())][:60]) if flipped.any() else ""
    return at_least(name, 1 - flipped.sum() / max(1, clear.sum()), allowed.agreement, worst)


def _wrong_shape(name: str, got: np.ndarray, wanted: np.ndarray, limit: float) -> Check:
    return Check(name, float("nan"), limit, False, f"shape {got.shape}, not {wanted.shape}")
