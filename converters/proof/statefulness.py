"""Whether a fresh original gives the same answers in another order: a model that keeps state from
call to call gives answers that no graph can give."""

import sys
from collections.abc import Sequence

import numpy as np

from converters.proof.closeness import spread_of
from converters.proof.reference_process import SAME, repeat_positions


def require_same_again(
    what: str, first: np.ndarray, again: np.ndarray, names: Sequence[str]
) -> None:
    """End the process if a fresh original's answers differ from ``first`` [n, ...].

    ``again`` [m, ...] are its answers to the samples at ``repeat_positions(n)``, in that order;
    ``names`` are those of all samples. Floats may differ by rounding, measured for each element
    against the spread of the original's answers; everything else must be equal.
    """
    positions = repeat_positions(len(first))
    if not first.size:
        return
    expected, actual = first[positions], again
    if actual.shape != expected.shape:
        _refuse(what, names[positions[0]], f"with the shape {list(actual.shape[1:])}")
    if first.dtype.kind != "f":
        differs = (actual != expected).reshape(len(positions), -1).any(axis=1)
        if differs.any():
            row = int(differs.argmax())
            _refuse(
                what,
                names[positions[row]],
                f"{_shown(actual[row])} instead of {_shown(expected[row])}",
            )
        return
    if not np.isfinite(first).all():
        return  # the proof reports this itself
    spread = spread_of(first)
    floor, scale = spread.floor[positions], spread.scale[positions]
    gaps = np.abs(actual.astype(np.float64) - expected).reshape(len(positions), -1)
    errors = np.where(gaps > floor, gaps / np.maximum(scale, 1e-300), 0.0)
    if not errors.max() <= SAME:
        row, column = map(int, np.unravel_index(int(errors.argmax()), errors.shape))
        _refuse(what, names[positions[row]], f"by {gaps[row, column]:.3g} in element {column}")


def _refuse(what: str, sample: str, how: str) -> None:
    sys.exit(
        f"a fresh one answers {sample[:60]!r} differently ({what}: {how}): it keeps state from "
        "call to call, or is random, which no graph can follow, or its source builds another model "
        "each time: load trained weights, and remove the state"
    )


def _shown(values: np.ndarray) -> str:
    return ", ".join(map(str, np.ravel(values)[:4]))
