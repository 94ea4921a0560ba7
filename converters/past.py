"""Whether an original answers the same when it is asked again, afresh and in another order: what
keeps something from call to call has answers that no graph can have."""

import sys
from collections.abc import Sequence

import numpy as np

from converters.closeness import spread_of
from converters.original import SAME, places_again


def require_same_again(
    what: str, first: np.ndarray, again: np.ndarray, names: Sequence[str]
) -> None:
    """Ends the process where a fresh original answers otherwise than ``first`` [n, ...].

    ``again`` are a fresh one's answers [m, ...] to the samples at ``places_again(n)``, in that
    order; ``names`` are all the samples'. Floats may differ by rounding, measured element by
    element in how far the original's answers lie apart; all else must be equal.
    """
    positions = places_again(len(first))
    if not first.size:
        return
    wanted, got = first[positions], again
    if got.shape != wanted.shape:
        _refuse(what, names[positions[0]], f"with the shape {list(got.shape[1:])}")
    if first.dtype.kind != "f":
        other = (got != wanted).reshape(len(positions), -1).any(axis=1)
        if other.any():
            row = int(other.argmax())
            _refuse(
                what, names[positions[row]], f"{_shown(got[row])} and not {_shown(wanted[row])}"
            )
        return
    if not np.isfinite(first).all():
        return  # the proof says so, in its own words
    spread = spread_of(first)
    floor, scale = (each[positions] for each in (spread.floor, spread.scale))
    gaps = np.abs(got.astype(np.float64) - wanted).reshape(len(positions), -1)
    apart = np.where(gaps > floor, gaps / np.maximum(scale, 1e-300), 0.0)
    if not apart.max() <= SAME:
        row, column = map(int, np.unravel_index(int(apart.argmax()), apart.shape))
        _refuse(what, names[positions[row]], f"by {gaps[row, column]:.3g} in element {column}")


def _refuse(what: str, sample: str, how: str) -> None:
    sys.exit(
        f"a fresh one answers {sample[:60]!r} otherwise ({what}: {how}): it keeps something from "
        "call to call, or is random, which no graph can follow, or its source makes another model "
        "each time: load trained weights, and take out what remembers"
    )


def _shown(values: np.ndarray) -> str:
    return ", ".join(map(str, np.ravel(values)[:4]))
