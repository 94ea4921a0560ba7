"""How near two tensors are, whatever their magnitude and their type."""

from collections.abc import Sequence

import numpy as np

from converters.proof import Check, at_most


def relative_checks(
    name: str,
    got: np.ndarray,
    wanted: np.ndarray,
    limits: tuple[float, float],
    labels: Sequence[str],
) -> list[Check]:
    """The largest and the mean of ``|got - wanted| / max(1, |wanted|)`` over arrays [n, ...];
    ``limits`` are theirs. Integers, booleans and texts must be equal. ``labels`` name the rows."""
    most, mean = limits
    if wanted.dtype.kind != "f":
        return [equal(name, got, wanted, labels)]
    worst = largest_relative(f"{name}: largest difference", got, wanted, most, labels)
    if got.shape != wanted.shape or not wanted.size:
        return [worst]
    return [worst, at_most(f"{name}: mean difference", float(_gaps(got, wanted).mean()), mean)]


def largest_relative(
    name: str, got: np.ndarray, wanted: np.ndarray, limit: float, labels: Sequence[str]
) -> Check:
    """The largest ``|got - wanted| / max(1, |wanted|)``, and where it is; two NaN are not equal."""
    if got.shape != wanted.shape:
        return Check(name, float("nan"), limit, False, f"shape {got.shape}, not {wanted.shape}")
    if not got.size:
        return at_most(name, 0.0, limit)
    gaps = _gaps(got, wanted).reshape(len(got), -1)
    # argmax finds a NaN first, and NaN passes no limit.
    row, column = map(int, np.unravel_index(int(gaps.argmax()), gaps.shape))
    values = got.reshape(gaps.shape)[row, column], wanted.reshape(gaps.shape)[row, column]
    worst = f"{labels[row]} element {column}: {values[0]:.8g}, original {values[1]:.8g}"
    return at_most(name, float(gaps[row, column]), limit, worst)


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


def _gaps(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    mine, theirs = got.astype(np.float64), wanted.astype(np.float64)
    # inf - inf is NaN, which is what it should count as.
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(mine - theirs) / np.maximum(1, np.abs(theirs)))
