"""How near two sets of answers are: the checks that every task shares."""

from collections.abc import Sequence

import numpy as np

from converters.closeness import decided, departure, misplaced, row_cosines, row_gaps, same_best
from converters.proof import Check, at_least, at_most
from converters.tolerance import Shares, Tolerance, clear_margin


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


def spread_checks(
    name: str, got: np.ndarray, wanted: np.ndarray, allowed: Shares, labels: Sequence[str]
) -> list[Check]:
    """How much of the spread of the original's answers [n, ...] is error in ``got``: of the worst
    number, of all, of the worst element, and whether they move as the original's do. ``labels``
    name the rows."""
    title = f"{name}: largest difference, of the spread"
    if got.shape != wanted.shape:
        return [_wrong_shape(title, got, wanted, allowed.largest)]
    if not got.size:
        return [at_most(title, 0.0, allowed.largest)]
    found = departure(got, wanted, allowed.resolution)
    place = found.row, found.column
    values = (each.reshape(len(each), -1)[place] for each in (got, wanted))
    mine, theirs = (f"{value:.8g}" for value in values)
    worst = f"{labels[found.row]} element {found.column}: {mine}, original {theirs}"
    return [
        at_most(title, found.largest, allowed.largest, worst),
        at_most(f"{name}: share of the spread that is error", found.lost, allowed.lost),
        at_most(f"{name}: the same of the worst element", found.worst_column, allowed.column),
        at_most(f"{name}: moves less or more than the original", abs(1 - found.gain), allowed.gain),
        _in_place(f"{name}: elements in another's place", got, wanted),
    ]


def _in_place(name: str, got: np.ndarray, wanted: np.ndarray) -> Check:
    wrong = misplaced(got, wanted)
    return at_most(name, len(wrong), 0, f"element {wrong[0]}" if len(wrong) else "")


def unsquashed(scores: np.ndarray, function: str) -> np.ndarray:
    """What 8-bit scores [n, labels] are compared as, FP64: logits again, since rounding is of
    logits, and a label of 1e-4 moves as much as one of 0.5. ``function`` is what made the scores:
    ``softmax`` (the logits' mean is lost, and so 0), ``sigmoid`` or ``none``."""
    numbers = scores.astype(np.float64)
    if function == "softmax":
        # Scores that are exactly 0 were no softmax's: what is below 1e-4 then counts as that.
        logs = np.log(np.maximum(numbers, 1e-4 if (numbers == 0).any() else 1e-12))
        return np.asarray(logs - logs.mean(axis=1, keepdims=True))
    if function == "sigmoid":
        inside = np.clip(numbers, 1e-3, 1 - 1e-3)
        return np.asarray(np.log(inside / (1 - inside)))
    return numbers


def score_spread_checks(
    name: str,
    got: np.ndarray,
    wanted: np.ndarray,
    function: str,
    allowed: Shares,
    labels: Sequence[str],
) -> list[Check]:
    """``spread_checks`` of scores [n, labels] that ``function`` made."""
    if got.shape == wanted.shape and allowed.resolution:
        got, wanted = unsquashed(got, function), unsquashed(wanted, function)
    return spread_checks(name, got, wanted, allowed, labels)


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
