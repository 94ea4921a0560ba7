"""How close a variant's answers are to the original's: the quantities that a Tolerance limits."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Closeness:
    """See ``converters.tolerance.Tolerance`` for what each number is."""

    difference: float
    mean: float
    cosine: float
    agreement: float


def closeness(
    got: np.ndarray, wanted: np.ndarray, agreement: float, relative: bool = False
) -> Closeness:
    """Of answers [n, ...] to n samples; NaN anywhere makes ``difference`` NaN, which fits nothing.

    ``relative``: differences are divided by the original's number where that is above 1.
    """
    mine = got.reshape(len(got), -1).astype(np.float64)
    theirs = wanted.reshape(len(wanted), -1).astype(np.float64)
    gaps = np.abs(mine - theirs)
    if relative:
        gaps = gaps / np.maximum(1, np.abs(theirs))
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (mine * theirs).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    largest = gaps.max(axis=1)
    return Closeness(
        float(largest.max()), float(largest.mean()), float(cosines.min()), float(agreement)
    )


def same_neighbour(got: np.ndarray, wanted: np.ndarray) -> float:
    """The share of vectors [n, width] whose nearest other vector is the same."""
    return float((_nearest(got) == _nearest(wanted)).mean())


def same_decision(got: np.ndarray, wanted: np.ndarray, clear: float) -> float:
    """The share of rows [n, classes] with the same likeliest class, among those where the
    original's best leads by more than ``clear``; 1.0 if there is none."""
    if wanted.shape[1] < 2:
        return 1.0
    ordered = np.sort(wanted, axis=1)
    decided = ordered[:, -1] - ordered[:, -2] > clear
    same = got.argmax(axis=1) == wanted.argmax(axis=1)
    return float(same[decided].mean()) if decided.any() else 1.0


def _nearest(vectors: np.ndarray) -> np.ndarray:
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = units @ units.T
    np.fill_diagonal(similarity, -np.inf)
    return np.asarray(similarity.argmax(axis=1))
