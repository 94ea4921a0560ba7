"""How near two sets of answers are: the one arithmetic behind the checks of a proof (``parity``),
the tolerances, and what ``tidegate optimize`` shows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Closeness:
    """See ``converters.tolerance.Tolerance`` for what each number is; ``cosine`` is the lowest of a
    sample, ``mean_cosine`` their mean. Here ``agreement`` is over all samples, clear or not."""

    difference: float
    mean: float
    cosine: float
    mean_cosine: float
    agreement: float


def closeness(
    got: np.ndarray, wanted: np.ndarray, agreement: float, relative: bool = False
) -> Closeness:
    """Of answers [n, ...] to n samples; NaN anywhere makes ``difference`` NaN, which fits nothing.

    ``relative``: differences are divided by the original's number where that is above 1.
    """
    largest = row_gaps(got, wanted, relative)
    cosines = row_cosines(got, wanted)
    return Closeness(
        difference=float(largest.max()),
        mean=float(largest.mean()),
        cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        agreement=float(agreement),
    )


def worst_of(views: Sequence[Closeness]) -> Closeness:
    """The worse of each number, of several outputs; NaN stays."""
    columns = np.array([tuple(vars(view).values()) for view in views])
    return Closeness(*columns[:, :2].max(axis=0).tolist(), *columns[:, 2:].min(axis=0).tolist())


def row_gaps(got: np.ndarray, wanted: np.ndarray, relative: bool = False) -> np.ndarray:
    """The largest difference of each row of two arrays [n, ...]: FP64 [n]."""
    mine, theirs = _flat(got), _flat(wanted)
    gaps = np.abs(mine - theirs)
    if relative:
        gaps = gaps / np.maximum(1, np.abs(theirs))
    return np.asarray(gaps.max(axis=1))


def row_cosines(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The cosine of each pair of rows of two arrays [n, ...]: FP64 [n]."""
    mine, theirs = _flat(got), _flat(wanted)
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
    # Two zero rows are equal, and a zero beside another is as far as can be.
    both_zero = (mine == 0).all(axis=1) & (theirs == 0).all(axis=1)
    return np.where(both_zero, 1.0, (mine * theirs).sum(axis=1) / np.maximum(lengths, 1e-30))


def decided(wanted: np.ndarray, clear: float) -> np.ndarray:
    """Which rows [n, classes] have a best element that leads by more than ``clear``: BOOL [n]."""
    if wanted.shape[1] < 2:
        return np.ones(len(wanted), dtype=bool)
    ordered = np.sort(wanted, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2] > clear)


def same_best(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which rows [n, classes] have their largest element at the same place: BOOL [n]."""
    return np.asarray(got.argmax(axis=1) == wanted.argmax(axis=1))


def same_decision(got: np.ndarray, wanted: np.ndarray, clear: float = 0.0) -> float:
    """The share of rows [n, classes] with the same likeliest class, among those where the
    original's best leads by more than ``clear``; 1.0 if there is none."""
    sure = decided(wanted, clear)
    return float(same_best(got, wanted)[sure].mean()) if sure.any() else 1.0


def similarity(vectors: np.ndarray) -> np.ndarray:
    """Cosines FP64 [n, n] of vectors [n, width]; one is no neighbour of itself."""
    rows = vectors.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -2.0)
    return np.asarray(cosines)


def same_neighbour(got: np.ndarray, wanted: np.ndarray) -> float:
    """The share of vectors [n, width] whose nearest other vector is the same."""
    return float(same_best(similarity(got), similarity(wanted)).mean())


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).astype(np.float64)
