"""The cosine of two answers, which a proof limits and a precision is chosen by."""

import numpy as np


def row_cosines(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The cosine of each pair of rows of two arrays [n, ...]: FP64 [n]."""
    actual, expected = flat_rows(actual), flat_rows(expected)
    lengths = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
    # Two zero rows are equal; a zero row and any other are as far apart as can be.
    both_zero = (actual == 0).all(axis=1) & (expected == 0).all(axis=1)
    return np.where(both_zero, 1.0, (actual * expected).sum(axis=1) / np.maximum(lengths, 1e-30))


def flat_rows(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).astype(np.float64)
