"""How near two tensors are, whatever their magnitude and their type."""

from collections.abc import Sequence

import numpy as np

from converters.closeness import departure
from converters.parity import spread_checks
from converters.proof import Check, at_most
from converters.tolerance import Shares


def relative_checks(
    name: str,
    got: np.ndarray,
    wanted: np.ndarray,
    limits: tuple[float, float] | Shares,
    labels: Sequence[str],
) -> list[Check]:
    """Floats [n, ...] against the spread of the original's own (``parity.spread_checks``), however
    small they are; integers, booleans and texts must be equal. ``limits`` are the largest
    difference and the share of all that may be error; ``labels`` name the rows."""
    if wanted.dtype.kind != "f":
        return [equal(name, got, wanted, labels)]
    if not isinstance(limits, Shares):
        most, lost = limits
        limits = Shares(most, lost, max(most, lost), max(most, lost))
    return spread_checks(name, got, wanted, limits, labels)


def largest_relative(
    name: str, got: np.ndarray, wanted: np.ndarray, limit: float, labels: Sequence[str]
) -> Check:
    """The largest difference, in units of how far ``wanted`` [n, ...] lie apart, and where it is;
    with a ``limit`` of 0 not one bit may differ. Two NaN are not equal."""
    if got.shape != wanted.shape:
        return Check(name, float("nan"), limit, False, f"shape {got.shape}, not {wanted.shape}")
    if not got.size:
        return at_most(name, 0.0, limit)
    if not limit and not np.array_equal(got, wanted):
        # A unit of rounding is nothing to a proof, but not the same.
        return at_most(name, max(departure(got, wanted).largest, 1e-9), limit)
    found = departure(got, wanted)
    mine, theirs = (
        f"{each.reshape(len(each), -1)[found.row, found.column]:.8g}" for each in (got, wanted)
    )
    worst = f"{labels[found.row]} element {found.column}: {mine}, original {theirs}"
    return at_most(name, found.largest, limit, worst)


def equal(name: str, got: np.ndarray, wanted: np.ndarray, labels: Sequence[str]) -> Check:
    """How many elements of two arrays [n, ...] differ; none may."""
    name = f"{name}: elements that differ"
    if got.shape != wanted.shape:
        return Check(name, float("nan"), 0.0, False, f"shape {got.shape}, not {wanted.shape}")
    if not got.size:
        return at_most(name, 0, 0)
    wrong = np.asarray(got != wanted).reshape(len(got), -1)
    if not wrong.any():
        return at_most(name, 0, 0)
    row, column = map(int, np.argwhere(wrong)[0])
    values = got.reshape(wrong.shape)[row, column], wanted.reshape(wrong.shape)[row, column]
    worst = f"{labels[row]} element {column}: {values[0]!r}, original {values[1]!r}"
    return at_most(name, int(wrong.sum()), 0, worst)
