"""How close two tensors are, whatever their magnitude and dtype."""

from collections.abc import Sequence

import numpy as np

from converters.proof.checks import Check, at_most
from converters.proof.closeness import departure
from converters.proof.parity import spread_checks
from converters.proof.tolerance import Shares


def relative_checks(
    name: str,
    actual: np.ndarray,
    expected: np.ndarray,
    limits: tuple[float, float] | Shares,
    labels: Sequence[str],
) -> list[Check]:
    """Floats [n, ...] are measured against the spread of the original's (``parity.spread_checks``),
    however small they are; integers, booleans and texts must be equal. ``limits`` are the largest
    difference and the overall share that may be error; ``labels`` name the rows."""
    if expected.dtype.kind != "f":
        return [equal(name, actual, expected, labels)]
    if not isinstance(limits, Shares):
        largest, lost = limits
        limits = Shares(largest, lost, max(largest, lost), max(largest, lost))
    return spread_checks(name, actual, expected, limits, labels)


def largest_relative(
    name: str, actual: np.ndarray, expected: np.ndarray, limit: float, labels: Sequence[str]
) -> Check:
    """The largest difference, in units of the spread of ``expected`` [n, ...], and where it is;
    with a ``limit`` of 0 no bit may differ. Two NaNs are not equal."""
    if actual.shape != expected.shape:
        return Check(
            name, float("nan"), limit, False, f"shape {actual.shape}, not {expected.shape}"
        )
    if not actual.size:
        return at_most(name, 0.0, limit)
    if not limit and not np.array_equal(actual, expected):
        # One unit of rounding counts as no error, but the arrays are not the same.
        return at_most(name, max(departure(actual, expected).largest, 1e-9), limit)
    error = departure(actual, expected)
    value, original = (
        f"{rows.reshape(len(rows), -1)[error.row, error.column]:.8g}" for rows in (actual, expected)
    )
    worst = f"{labels[error.row]} element {error.column}: {value}, original {original}"
    return at_most(name, error.largest, limit, worst)


def equal(name: str, actual: np.ndarray, expected: np.ndarray, labels: Sequence[str]) -> Check:
    """The number of elements in which two arrays [n, ...] differ; the limit is 0."""
    name = f"{name}: elements that differ"
    if actual.shape != expected.shape:
        return Check(name, float("nan"), 0.0, False, f"shape {actual.shape}, not {expected.shape}")
    if not actual.size:
        return at_most(name, 0, 0)
    differs = np.asarray(actual != expected).reshape(len(actual), -1)
    if not differs.any():
        return at_most(name, 0, 0)
    row, column = map(int, np.argwhere(differs)[0])
    value, original = (rows.reshape(differs.shape)[row, column] for rows in (actual, expected))
    worst = f"{labels[row]} element {column}: {value!r}, original {original!r}"
    return at_most(name, int(differs.sum()), 0, worst)
