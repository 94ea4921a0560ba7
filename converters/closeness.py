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


# Units of FP32 rounding that two right computations of one number may be apart.
FEW_UNITS = 4


@dataclass(frozen=True)
class Spread:
    """How far the original's own answers lie apart, for each element of an answer: what every
    difference is measured against, so that small numbers are proved like large ones.

    ``middle`` is the median over the samples, ``size`` a typical departure from it (0 where every
    sample has the same answer), ``floor`` what FP32 may round off: FP64 [k] each. ``scale`` FP64
    [n, k] is each number's own: its departure from the middle where that is more than typical, so
    that one answer of 1e30 does not hide the others.
    """

    middle: np.ndarray
    size: np.ndarray
    floor: np.ndarray
    scale: np.ndarray

    @property
    def constant(self) -> np.ndarray:
        """BOOL [k]: the elements that are the same for every sample."""
        return np.asarray(self.size == 0)


def spread_of(wanted: np.ndarray) -> Spread:
    """Of answers [n, ...] to n samples. Where no element differs between the samples, the answers
    are measured from zero."""
    theirs = _flat(wanted)
    magnitude = np.abs(theirs).max(axis=0, initial=0.0)
    unit = 2.0**-10 if wanted.dtype == np.float16 else 2.0**-23
    floor = FEW_UNITS * (unit * magnitude + _grid(theirs, magnitude))
    middle = np.median(theirs, axis=0)
    size, apart = _typical(theirs - middle, floor)
    if not size.any():
        middle, size, apart = np.zeros_like(middle), magnitude, np.abs(theirs)
    return Spread(middle, size, floor, np.maximum(size, apart))


def _typical(departures: np.ndarray, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FP64 [k], and the absolute departures [n, k]: the deviation, or what half of those that
    depart at all do, whichever is less."""
    apart = np.abs(departures)
    moved = np.ma.masked_array(apart, apart <= floor)
    half = np.ma.median(moved, axis=0).filled(0.0)
    return np.minimum(np.sqrt((apart**2).mean(axis=0)), 1.5 * half), apart


def _grid(values: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """The grid FP64 [k] that a column's numbers stand on because they are what is left of much
    larger ones: 1 - p of an FP32 p near 1 is a multiple of 6e-8. 0 where there is none."""
    found, largest = np.zeros_like(magnitude), magnitude.max(initial=0.0)
    small = (magnitude > 0) & (magnitude < largest / 4)
    if not small.any() or not np.isfinite(largest):
        return found
    top = int(np.floor(np.log2(largest)))
    # From coarse to fine, down to half a unit of the largest: coarser ones are meant (0 and 1).
    for power in range(top - 20, top - 26, -1):
        grid = 2.0**power
        open_ = small & (found == 0) & (grid > 2.0**-20 * magnitude)
        if open_.any():
            found[open_] = np.where((np.mod(values[:, open_], grid) == 0).all(axis=0), grid, 0.0)
    return found


@dataclass(frozen=True)
class Departure:
    """How far answers are from the original's, in units of the original's ``Spread``.

    ``largest`` the largest of one number, ``row`` and ``column`` where; ``lost`` how much of the
    original's spread is error, over all elements: answers that are always the same lose 1;
    ``worst_column`` the same of the worst element; ``gain`` by how much the original's movements
    are followed: 1 where they are, 0 where nothing moves, -1 where all is turned round.
    """

    largest: float
    row: int
    column: int
    lost: float
    worst_column: float
    gain: float


def departure(got: np.ndarray, wanted: np.ndarray, resolution: float = 0.0) -> Departure:
    """Of answers [n, ...] with n and all axes at least 1; NaN anywhere makes NaN of all.

    ``resolution``: elements whose spread is a smaller share than this of the typical element's are
    measured as though they had that: rounding to 8 bits goes by the largest of a tensor.
    """
    mine, theirs, spread = _flat(got), _flat(wanted), spread_of(wanted)
    typical = np.sqrt((spread.size**2).mean())
    least = np.maximum(resolution * typical, np.where(spread.constant, np.abs(spread.middle), 0.0))
    least = np.where(spread.constant & (least == 0), typical, least)
    scale = np.maximum(spread.scale, np.maximum(least, 1e-300))
    with np.errstate(invalid="ignore"):
        gaps = mine - theirs
        beyond = np.where(np.abs(gaps) <= spread.floor, 0.0, gaps)
        share = np.abs(beyond) / scale
    # argmax finds a NaN first, and NaN passes no limit.
    row, column = map(int, np.unravel_index(int(share.argmax()), share.shape))
    if not np.isfinite(mine).all():
        nan = float("nan")
        return Departure(nan, row, column, nan, nan, nan)
    movements = theirs - spread.middle
    weight = (np.maximum(spread.size, 1e-300) / scale) ** 2
    error, signal = (beyond**2 * weight).sum(axis=0), (movements**2 * weight).sum(axis=0)
    followed = mine - np.median(mine, axis=0) if spread.middle.any() else mine
    if not signal.any():
        return Departure(float(share.max()), row, column, float(share.max()), 0.0, 1.0)
    told = signal > 0
    least_signal = np.maximum(signal, (resolution * typical) ** 2 * len(theirs))
    return Departure(
        largest=float(share.max()),
        row=row,
        column=column,
        lost=float(np.sqrt(error.sum() / signal.sum())),
        worst_column=float(np.sqrt((error[told] / least_signal[told]).max())),
        gain=float((followed * movements * weight).sum() / signal.sum()),
    )


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
