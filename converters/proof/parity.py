"""How close two sets of answers are: the checks that all tasks share."""

from collections.abc import Sequence

import numpy as np

from converters.cosine import row_cosines
from converters.proof.checks import Check, at_least, at_most
from converters.proof.closeness import decided, departure, misplaced, row_gaps, same_best
from converters.proof.tolerance import Shares, Tolerance, clear_margin


def mean_difference(name: str, actual: np.ndarray, expected: np.ndarray, limit: float) -> Check:
    """The largest difference of each row of two arrays [n, ...], averaged over the rows: it does
    not depend on the number of classes or elements of a row."""
    if actual.shape != expected.shape:
        return _wrong_shape(name, actual, expected, limit)
    return at_most(name, float(row_gaps(actual, expected).mean()), limit)


def lowest_cosine(
    name: str, actual: np.ndarray, expected: np.ndarray, limit: float, labels: Sequence[str]
) -> Check:
    """The lowest cosine between rows of two arrays [n, width], and the row that has it."""
    if actual.shape != expected.shape:
        return _wrong_shape(name, actual, expected, limit)
    cosine = row_cosines(actual, expected)
    # argmin finds a NaN first, and NaN passes no limit.
    row = int(cosine.argmin())
    return at_least(name, cosine[row], limit, repr(labels[row][:60]))


def spread_checks(
    name: str, actual: np.ndarray, expected: np.ndarray, allowed: Shares, labels: Sequence[str]
) -> list[Check]:
    """How much of the spread of the original's answers [n, ...] is error in ``actual``: for the
    worst number, overall and for the worst element; and whether the answers move as the original's
    do. ``labels`` name the rows."""
    title = f"{name}: largest difference, of the spread"
    if actual.shape != expected.shape:
        return [_wrong_shape(title, actual, expected, allowed.largest)]
    if not actual.size:
        return [at_most(title, 0.0, allowed.largest)]
    error = departure(actual, expected, allowed.resolution)
    values = (rows.reshape(len(rows), -1)[error.row, error.column] for rows in (actual, expected))
    value, original = (f"{value:.8g}" for value in values)
    worst = f"{labels[error.row]} element {error.column}: {value}, original {original}"
    return [
        at_most(title, error.largest, allowed.largest, worst),
        at_most(f"{name}: share of the spread that is error", error.lost, allowed.lost),
        at_most(f"{name}: the same of the worst element", error.worst_column, allowed.column),
        at_most(f"{name}: moves less or more than the original", abs(1 - error.gain), allowed.gain),
        _misplaced(f"{name}: elements with another's numbers", actual, expected),
    ]


def _misplaced(name: str, actual: np.ndarray, expected: np.ndarray) -> Check:
    elements = misplaced(actual, expected)
    return at_most(name, len(elements), 0, f"element {elements[0]}" if len(elements) else "")


def unsquashed(scores: np.ndarray, function: str) -> np.ndarray:
    """The logits, FP64, of 8-bit scores [n, labels]: they are compared as logits because rounding
    happens there, and a label of 1e-4 moves as much as one of 0.5. ``function`` made the scores:
    ``softmax`` (the mean of the logits is lost, and set to 0), ``sigmoid`` or ``none``."""
    numbers = scores.astype(np.float64)
    if function == "softmax":
        # A softmax gives no exact 0: where there is one, anything below 1e-4 counts as 1e-4.
        logs = np.log(np.maximum(numbers, 1e-4 if (numbers == 0).any() else 1e-12))
        return np.asarray(logs - logs.mean(axis=1, keepdims=True))
    if function == "sigmoid":
        inside = np.clip(numbers, 1e-3, 1 - 1e-3)
        return np.asarray(np.log(inside / (1 - inside)))
    return numbers


def score_spread_checks(
    name: str,
    actual: np.ndarray,
    expected: np.ndarray,
    function: str,
    allowed: Shares,
    labels: Sequence[str],
) -> list[Check]:
    """``spread_checks`` of the scores [n, labels] that ``function`` made."""
    if actual.shape == expected.shape and allowed.resolution:
        actual, expected = unsquashed(actual, function), unsquashed(expected, function)
    return spread_checks(name, actual, expected, allowed, labels)


def same_decision(
    name: str, actual: np.ndarray, expected: np.ndarray, allowed: Tolerance, labels: Sequence[str]
) -> Check:
    """The share of rows [n, classes] whose largest element is in the same position, among those
    where the original's largest leads clearly (``tolerance.clear_margin``)."""
    if actual.shape != expected.shape:
        return _wrong_shape(name, actual, expected, allowed.agreement)
    clear = decided(expected, clear_margin(allowed))
    flipped = ~same_best(actual, expected) & clear
    worst = repr(labels[int(flipped.argmax())][:60]) if flipped.any() else ""
    return at_least(name, 1 - flipped.sum() / max(1, clear.sum()), allowed.agreement, worst)


def _wrong_shape(name: str, actual: np.ndarray, expected: np.ndarray, limit: float) -> Check:
    return Check(name, float("nan"), limit, False, f"shape {actual.shape}, not {expected.shape}")
