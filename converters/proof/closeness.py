"""How close two sets of answers are: the arithmetic behind the checks of a proof (``parity``), the
tolerances and the accuracy that ``tidegate optimize`` shows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converters.cosine import flat_rows, row_cosines


@dataclass(frozen=True)
class Closeness:
    """``tolerance.Tolerance`` explains each number; ``cosine`` is the lowest over the samples,
    ``mean_cosine`` their mean. Here ``agreement`` covers all samples, clear or not."""

    difference: float
    mean: float
    cosine: float
    mean_cosine: float
    agreement: float


def closeness(
    actual: np.ndarray, expected: np.ndarray, agreement: float, relative: bool = False
) -> Closeness:
    """Compare answers [n, ...] to n samples; a NaN anywhere makes ``difference`` NaN, which passes
    no limit.

    ``relative``: differences are in units of the original's spread (``Spread.scale``).
    """
    largest = row_gaps(actual, expected, relative)
    cosines = row_cosines(actual, expected)
    return Closeness(
        difference=float(largest.max()),
        mean=float(largest.mean()),
        cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        agreement=float(agreement),
    )


def worst_of(outputs: Sequence[Closeness]) -> Closeness:
    """The worst of each number over several outputs; NaN stays NaN."""
    columns = np.array([tuple(vars(output).values()) for output in outputs])
    return Closeness(*columns[:, :2].max(axis=0).tolist(), *columns[:, 2:].min(axis=0).tolist())


def row_gaps(actual: np.ndarray, expected: np.ndarray, relative: bool = False) -> np.ndarray:
    """The largest difference of each row of two arrays [n, ...]: FP64 [n]."""
    gaps = np.abs(flat_rows(actual) - flat_rows(expected))
    if relative:
        gaps = gaps / np.maximum(spread_of(expected).scale, 1e-300)
    return np.asarray(gaps.max(axis=1))


# Two correct computations of one number may differ by this many units of FP32 rounding.
FEW_UNITS = 4
# Below this FP32 has no number of full precision: a probability of 1e-87 is served as 0.
SMALLEST = 2.0**-126
# Two correct FP32 runs with different kernels or threads differed by at most 2.1 times the largest
# amount that FP32 rounds off in one of them (image logits, AVX2 and SSE4); this is twice that.
NOISE_TIMES = 4
NOISE_SHARE = 0.1  # of the spread of the answers: an original that rounds off more shows nothing
NOISE_LIMIT = 3e-4  # of the largest answer: the maximum over 25 architectures was 5e-5
# An answer with more elements is an image or a sequence, and has no labels.
COMPARED = 2048


@dataclass(frozen=True)
class Spread:
    """How much the original's own answers vary, for each element of an answer. Every difference is
    measured against this, so that small numbers are proved as strictly as large ones.

    ``middle`` FP64 [k] is the median over the samples, ``size`` FP64 [k] a typical departure from
    it (0 where every sample has the same answer). ``scale`` FP64 [n, k] is per number: its
    departure from the middle where that exceeds the typical one, so that a single answer of 1e30
    does not hide the others; ``floor`` FP64 [n, k] is what FP32 may round off it.
    """

    middle: np.ndarray
    size: np.ndarray
    floor: np.ndarray
    scale: np.ndarray

    @property
    def constant(self) -> np.ndarray:
        """The elements that are the same for every sample: BOOL [k]."""
        return np.asarray(self.size == 0)


def spread_of(expected: np.ndarray) -> Spread:
    """The spread of answers [n, ...] to n samples. Where no element differs between the samples,
    the answers are measured from zero."""
    rows = flat_rows(expected)
    magnitude = np.quantile(np.abs(rows), 0.9, axis=0)
    unit = 2.0**-10 if expected.dtype == np.float16 else 2.0**-23
    rounding = unit * np.maximum(np.abs(rows), magnitude)
    floor = FEW_UNITS * (rounding + _grid(rows, magnitude) + SMALLEST)
    middle = np.median(rows, axis=0)
    distances = np.abs(rows - middle)
    size = _typical(distances, floor)
    if not size.any():
        distances = np.abs(rows)
        middle, size = np.zeros_like(middle), distances.max(axis=0)
    return Spread(middle, size, floor, np.maximum(size, distances))


def _typical(distances: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """A typical one of the distances [n, k] from the middle, FP64 [k]: their standard deviation, or
    1.5 times the median of those above ``floor``, whichever is smaller."""
    moving = np.where(distances > floor, distances, np.nan)
    still = np.isnan(moving).all(axis=0)
    median = np.where(still, 0.0, np.nanmedian(np.where(still, 0.0, moving), axis=0))
    return np.asarray(np.minimum(np.sqrt((distances**2).mean(axis=0)), 1.5 * median))


def _grid(values: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """The grid FP64 [k] that all numbers of a column lie on because they are remainders of much
    larger ones: 1 - p of an FP32 p near 1 is a multiple of 6e-8. 0 where there is none."""
    grids, largest = np.zeros_like(magnitude), magnitude.max(initial=0.0)
    small = (magnitude > 0) & (magnitude < largest / 4)
    if not small.any() or not np.isfinite(largest):
        return grids
    top = int(np.floor(np.log2(largest)))
    # From coarse to fine, down to half a unit of the largest; a coarser grid is intended (0 and 1).
    for power in range(top - 20, top - 26, -1):
        grid = 2.0**power
        open_ = small & (grids == 0) & (grid > 2.0**-20 * magnitude)
        if open_.any():
            grids[open_] = np.where((np.mod(values[:, open_], grid) == 0).all(axis=0), grid, 0.0)
    return grids


def noise_of(outputs: np.ndarray, exact: np.ndarray, positions: Sequence[int]) -> np.ndarray:
    """What FP32 arithmetic may round off each element of the original's ``outputs`` FP32 [n, ...]:
    FP64 [...].

    ``exact`` FP64 [m, ...] are the outputs computed in FP64 for the samples at ``positions``. A
    difference larger than any rounding, or NaN, counts as 0: it comes from another function.
    """
    gaps = np.abs(outputs[list(positions)].astype(np.float64) - exact)
    is_rounding = gaps <= NOISE_LIMIT * np.abs(outputs).max(initial=0.0)
    noise = NOISE_TIMES * np.where(is_rounding, gaps, 0.0).max(axis=0)
    return np.minimum(noise, NOISE_SHARE * spread_of(outputs).size.reshape(noise.shape))


def beyond_noise(actual: np.ndarray, expected: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
    """``actual`` [n, ...] with the original's own number wherever the two are closer than ``noise``
    [...] (``noise_of``; None where it was not measured): what remains is error."""
    if noise is None or actual.shape != expected.shape:
        return actual
    with np.errstate(invalid="ignore"):
        near = np.abs(actual.astype(np.float64) - expected) <= noise
    return np.asarray(np.where(near, expected.astype(actual.dtype), actual))


@dataclass(frozen=True)
class Departure:
    """How far answers are from the original's, in units of the original's ``Spread``.

    ``largest`` is the largest difference of one number, at ``row`` and ``column``; ``lost`` is the
    share of the original's spread that is error, over all elements (constant answers lose 1);
    ``worst_column`` is the same for the worst element; ``gain`` is how closely the answers follow
    the original's movements: 1 exactly, 0 not at all, -1 in the opposite direction.
    """

    largest: float
    row: int
    column: int
    lost: float
    worst_column: float
    gain: float


def departure(actual: np.ndarray, expected: np.ndarray, resolution: float = 0.0) -> Departure:
    """The departure of answers [n, ...], n and all axes at least 1; one NaN makes every field NaN.

    ``resolution``: elements whose spread is less than this share of the typical element's are
    measured as though it were that much: 8-bit rounding depends on the largest value of a tensor.
    """
    spread = spread_of(expected)
    actual, expected = flat_rows(actual), flat_rows(expected)
    largest_size = max(float(spread.size.max()), 1e-300)
    typical = largest_size * float(np.sqrt(((spread.size / largest_size) ** 2).mean()))
    # An element that never moves is measured against itself, or if it is 0 against the others.
    rounded = spread.floor.min(axis=0)
    still = np.where(np.abs(spread.middle) > rounded, np.abs(spread.middle), typical)
    least = np.maximum(resolution * typical, np.where(spread.constant, still, 0.0))
    scale = np.maximum(spread.scale, np.maximum(least, 1e-300))
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = actual - expected
        rounding = np.abs(gaps) <= spread.floor
        error = np.where(rounding, 0.0, gaps / scale)
        actual = np.where(rounding, expected, actual)
    # argmax finds a NaN first, and NaN passes no limit.
    row, column = map(int, np.unravel_index(int(np.abs(error).argmax()), error.shape))
    if not np.isfinite(error).all():
        nan = float("nan")
        return Departure(nan, row, column, nan, nan, nan)
    largest = float(np.abs(error).max())
    movement = (expected - spread.middle) / scale
    share = (spread.size / largest_size) ** 2
    signal = (movement**2).sum(axis=0)
    whole = float((share * signal).sum())
    if not whole:
        return Departure(largest, row, column, largest, largest, 1.0)
    wrong = (error**2).sum(axis=0)
    moved = ~spread.constant
    followed = actual - np.median(actual, axis=0) if spread.middle.any() else actual
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


def misplaced(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The elements, INT64 [m], of answers [n, k] that hold another element's numbers: less than
    half as far from the other's as from their own. Two swapped labels are found however little
    they move; rounding alone never looks like this. Answers of more than ``COMPARED`` elements are
    not examined."""
    rows, originals = flat_rows(actual), flat_rows(expected)
    count = originals.shape[1]
    if not 1 < count <= COMPARED or len(originals) < 2 or not np.isfinite(rows).all():
        return np.zeros(0, dtype=np.int64)
    spread = spread_of(expected)
    unit = max(float(spread.size.max()), 1e-300)
    centre = np.median(originals, axis=0).mean()
    rows, originals = (rows - centre) / unit, (originals - centre) / unit
    powers = (originals**2).sum(axis=0)
    squares = (rows**2).sum(axis=0)[:, None] + powers - 2 * rows.T @ originals
    to_itself = np.diagonal(squares).copy()
    np.fill_diagonal(squares, np.inf)
    # Far enough from itself that FP32 rounding cannot have moved it.
    moved = to_itself > ((spread.floor / unit) ** 2).sum(axis=0) + 1e-9 * powers.max()
    return np.flatnonzero(moved & ~spread.constant & (squares.min(axis=1) < 0.25 * to_itself))


def _least_signal(signal: np.ndarray, spread: Spread, least: np.ndarray) -> np.ndarray:
    """The movement FP64 [k] of each element; one that moves less than the resolution counts as
    moving that much."""
    return np.asarray(np.where(spread.size < least, np.maximum(signal, len(spread.scale)), signal))


def decided(expected: np.ndarray, clear: float) -> np.ndarray:
    """Which rows [n, classes] have a largest element that leads by more than ``clear``:
    BOOL [n]."""
    if expected.shape[1] < 2:
        return np.ones(len(expected), dtype=bool)
    ordered = np.sort(expected, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2] > clear)


def same_best(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Which rows [n, classes] have their largest element in the same position: BOOL [n]."""
    return np.asarray(actual.argmax(axis=1) == expected.argmax(axis=1))


def same_decision(actual: np.ndarray, expected: np.ndarray, clear: float = 0.0) -> float:
    """The share of rows [n, classes] with the same likeliest class, among those where the
    original's best leads by more than ``clear``; 1.0 if there is none."""
    clear_rows = decided(expected, clear)
    if not clear_rows.any():
        return 1.0
    return float(same_best(actual, expected)[clear_rows].mean())


def similarity(vectors: np.ndarray) -> np.ndarray:
    """Cosines FP64 [n, n] of vectors [n, width]; -2 on the diagonal, so that no vector is its own
    neighbour."""
    rows = vectors.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -2.0)
    return np.asarray(cosines)


def same_neighbour(actual: np.ndarray, expected: np.ndarray) -> float:
    """The share of vectors [n, width] whose nearest other vector is the same."""
    return float(same_best(similarity(actual), similarity(expected)).mean())
