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

    ``relative``: differences are in units of the original's spread (``Spread.scale``).
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
    gaps = np.abs(_flat(got) - _flat(wanted))
    if relative:
        gaps = gaps / np.maximum(spread_of(wanted).scale, 1e-300)
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
# Two right FP32 runs, on other kernels or threads, were apart by at most 2.1 times the largest that
# FP32 rounds off one of them (images' logits, AVX2 and SSE4): twice that.
NOISE_TIMES = 4
NOISE_SHARE = 0.1  # of how far the answers lie apart: what rounds off more says nothing
NOISE_LIMIT = 3e-4  # of the largest answer: the most of 25 architectures was 5e-5
# An answer of more elements is an image or a sequence, and has no labels.
COMPARED = 2048


@dataclass(frozen=True)
class Spread:
    """How far the original's own answers lie apart, for each element of an answer: what every
    difference is measured against, so that small numbers are proved like large ones.

    ``middle`` is the median over the samples, ``size`` a typical departure from it (0 where every
    sample has the same answer): FP64 [k]. ``scale`` FP64 [n, k] is each number's own: its departure
    from the middle where that is more than typical, so that one answer of 1e30 does not hide the
    others; ``floor`` FP64 [n, k] is what FP32 may round off of it.
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
    magnitude = np.quantile(np.abs(theirs), 0.9, axis=0)
    unit = 2.0**-10 if wanted.dtype == np.float16 else 2.0**-23
    rounded = unit * np.maximum(np.abs(theirs), magnitude)
    floor = FEW_UNITS * (rounded + _grid(theirs, magnitude))
    middle = np.median(theirs, axis=0)
    size, apart = _typical(theirs - middle, floor)
    if not size.any():
        apart = np.abs(theirs)
        middle, size = np.zeros_like(middle), apart.max(axis=0)
    return Spread(middle, size, floor, np.maximum(size, apart))


def _typical(departures: np.ndarray, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FP64 [k], and the absolute departures [n, k]: the deviation, or what half of those that
    depart at all do, whichever is less."""
    apart = np.abs(departures)
    moved = np.where(apart > floor, apart, np.nan)
    still = np.isnan(moved).all(axis=0)
    half = np.where(still, 0.0, np.nanmedian(np.where(still, 0.0, moved), axis=0))
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


def noise_of(answers: np.ndarray, exact: np.ndarray, positions: Sequence[int]) -> np.ndarray:
    """What FP32 arithmetic may round off of each element of the original's ``answers``
    FP32 [n, ...]: FP64 [...].

    ``exact`` FP64 [m, ...] are the same, computed in FP64 for the samples at ``positions``. What is
    further apart than any rounding, or no number, counts as 0: another function was computed.
    """
    wrong = np.abs(answers[list(positions)].astype(np.float64) - exact)
    rounded = wrong <= NOISE_LIMIT * np.abs(answers).max(initial=0.0)
    noise = NOISE_TIMES * np.where(rounded, wrong, 0.0).max(axis=0)
    return np.minimum(noise, NOISE_SHARE * spread_of(answers).size.reshape(noise.shape))


def beyond_noise(got: np.ndarray, wanted: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
    """``got`` [n, ...] with the original's own number wherever the two are nearer than ``noise``
    [...] (``noise_of``; None where nobody measured it): what is left is error."""
    if noise is None or got.shape != wanted.shape:
        return got
    with np.errstate(invalid="ignore"):
        near = np.abs(got.astype(np.float64) - wanted) <= noise
    return np.asarray(np.where(near, wanted.astype(got.dtype), got))


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
    largest_size = max(float(spread.size.max()), 1e-300)
    typical = largest_size * float(np.sqrt(((spread.size / largest_size) ** 2).mean()))
    # An element that never moves is measured against itself, or against the others if it is 0.
    rounded = spread.floor.min(axis=0)
    still = np.where(np.abs(spread.middle) > rounded, np.abs(spread.middle), typical)
    least = np.maximum(resolution * typical, np.where(spread.constant, still, 0.0))
    scale = np.maximum(spread.scale, np.maximum(least, 1e-300))
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = mine - theirs
        rounding = np.abs(gaps) <= spread.floor
        error = np.where(rounding, 0.0, gaps / scale)
        mine = np.where(rounding, theirs, mine)
    # argmax finds a NaN first, and NaN passes no limit.
    row, column = map(int, np.unravel_index(int(np.abs(error).argmax()), error.shape))
    if not np.isfinite(error).all():
        nan = float("nan")
        return Departure(nan, row, column, nan, nan, nan)
    largest = float(np.abs(error).max())
    movement = (theirs - spread.middle) / scale
    share = (spread.size / largest_size) ** 2
    signal = (movement**2).sum(axis=0)
    whole = float((share * signal).sum())
    if not whole:
        return Departure(largest, row, column, largest, largest, 1.0)
    wrong = (error**2).sum(axis=0)
    moved = ~spread.constant
    followed = mine - np.median(mine, axis=0) if spread.middle.any() else mine
    return Departure(
        largest=largest,
        row=row,
        column=column,
        lost=float(np.sqrt((share * wrong).sum() / whole)),
        worst_column=float(
            np.sqrt((wrong[moved] / _least_signal(signal, spread, least)[moved]).max())
        ),
        gain=float((share * (followed / scale * movement).sum(axis=0)).sum() / whole),
    )


def misplaced(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The elements [m] of an answer whose numbers are those of another element: less than half as
    far from the other's as from their own, in answers [n, k]. Two labels that changed places are,
    however little they move; rounding does not do it. Of more than ``COMPARED`` elements none is
    looked at."""
    mine, theirs = _flat(got), _flat(wanted)
    count = theirs.shape[1]
    if not 1 < count <= COMPARED or len(theirs) < 2 or not np.isfinite(mine).all():
        return np.zeros(0, dtype=np.int64)
    spread = spread_of(wanted)
    unit = max(float(spread.size.max()), 1e-300)
    mine, theirs = ((each - np.median(theirs, axis=0).mean()) / unit for each in (mine, theirs))
    squares = (mine**2).sum(axis=0)[:, None] + (theirs**2).sum(axis=0) - 2 * mine.T @ theirs
    own = np.diagonal(squares).copy()
    np.fill_diagonal(squares, np.inf)
    # Far enough from its own that FP32 is not what moved it.
    moved = own > ((spread.floor / unit) ** 2).sum(axis=0) + 1e-9 * (theirs**2).sum(axis=0).max()
    return np.flatnonzero(moved & ~spread.constant & (squares.min(axis=1) < 0.25 * own))


def _least_signal(signal: np.ndarray, spread: Spread, least: np.ndarray) -> np.ndarray:
    """The movement FP64 [k] of each element, or of one at the resolution where it moves less."""
    return np.asarray(np.where(spread.size < least, np.maximum(signal, len(spread.scale)), signal))


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
