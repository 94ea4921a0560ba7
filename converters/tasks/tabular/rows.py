"""Rows for a model when the user gives none, and rows at the model's thresholds.

A conversion of trees goes wrong at a threshold: a number between it and its rounding falls on the
other side. So bisection finds pairs of neighbouring numbers between which the library's own
prediction changes, whatever precedes the trees.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from converters.errors import SourceRefused
from converters.sources.tabular_model import TabularModel
from converters.table import MISSING, Column, Table, ordinary_row

ROWS, MAX_SEGMENTS = 80, 24
# Bisecting two doubles of similar size down to neighbours takes fewer than 64 steps.
STEPS = 80
MAX_ANSWER = 1e30
# How the labels of the rows around a jump begin.
AROUND = tuple(f"{side} a threshold" for side in ("just below", "just above", "below", "above"))
# The magnitudes at which to look for the prediction's sensitivity to a column that the model says
# nothing about.
MAGNITUDES = np.array([0.01, 0.1, 1, 10, 100, 1e3, 1e4])


@dataclass(frozen=True)
class ExploredModel:
    """A model with each column's centre and spread, and whether it accepts missing values."""

    model: TabularModel
    columns: tuple[Column, ...]


def explore(model: TabularModel) -> ExploredModel:
    """Find out by predictions what the model does not say about its columns."""
    thresholds = model.thresholds()
    columns = [_with_thresholds(column, thresholds.get(column.name)) for column in model.columns]
    start = ordinary_row(columns)
    columns = [_with_spread(model, column, start) for column in columns]
    return ExploredModel(model, tuple(_with_missing(model, column, start) for column in columns))


def answers_of(model: TabularModel, rows: Table) -> np.ndarray:
    """The library's predictions FP64 [n, width]; NaN for a row that it refuses."""
    if not len(rows):
        return np.empty((0, max(1, len(model.labels))))
    try:
        return model.scores(rows)
    except SourceRefused:
        raise
    except Exception:  # a library can raise anything for a row that it does not accept
        width, predictions = max(1, len(model.labels)), []
        for index in range(len(rows)):
            try:
                predictions.append(model.scores(rows.rows(slice(index, index + 1)))[0])
            except Exception:
                predictions.append(np.full(width, np.nan))
        return np.stack(predictions)


def partition_by_answer(model: TabularModel, rows: Table) -> tuple[Table, Table]:
    """The rows that the library predicts, and those that it refuses or for which it gives NaN or a
    number that is beyond any use and nearly beyond FP32 (an exponential of a generated number)."""
    predictions = answers_of(model, rows)
    magnitude = np.abs(predictions)
    is_usable = np.isfinite(predictions) & (magnitude < MAX_ANSWER)
    if not model.labels:
        is_usable &= (magnitude == 0) | (magnitude > 1 / MAX_ANSWER)
    row_is_usable = is_usable.all(axis=1)
    return rows.rows(np.flatnonzero(row_is_usable)), rows.rows(np.flatnonzero(~row_is_usable))


def positive_rows(explored: ExploredModel, rows: Table) -> Table:
    """The rows with every number made positive: some steps (a logarithm, Box-Cox) accept no
    others."""
    minimum = {column.name: 1e-3 * (column.spread or 1.0) for column in explored.columns}
    columns = {
        name: values if values.dtype.kind == "U" else np.abs(values) + minimum[name]
        for name, values in rows.columns.items()
    }
    return Table(columns, rows.labels)


def generated_rows(explored: ExploredModel, rng: np.random.Generator, count: int = ROWS) -> Table:
    """``count`` random rows around each column's centre, near its thresholds and from its
    categories."""
    thresholds = explored.model.thresholds()
    columns = {
        column.name: _random_numbers(column, thresholds.get(column.name), rng, count)
        for column in explored.columns
    }
    labels = [f"generated row {index}" for index in range(count)]
    return Table(columns, labels)


def boundary_rows(explored: ExploredModel, rows: Table, rng: np.random.Generator) -> Table:
    """Up to ``MAX_SEGMENTS`` places where the prediction jumps along one column between two rows;
    four rows each: the neighbouring FP64 numbers, and the FP32 ones around them. May be empty."""
    # Nearest neighbours also jump, but where two distances tie, and there no two libraries agree.
    segments = list(_jumping_segments(explored, rows, rng)) if explored.model.steps else []
    if not segments:
        return rows.rows(slice(0, 0))
    start = rows.rows([row for row, _, _ in segments])
    names = [name for _, name, _ in segments]
    low = np.array([rows.columns[name][row] for row, name, _ in segments])
    high = np.array([number for _, _, number in segments])
    low, high = _bisect(explored.model, _Segments(start, names), low, high)
    return _rows_around(explored.model, _Segments(start, names), low, high)


@dataclass(frozen=True)
class _Segments:
    """Row i of ``start`` with another number in the column ``names[i]``."""

    start: Table
    names: list[str]

    def at(self, numbers: np.ndarray) -> Table:
        columns = {name: values.copy() for name, values in self.start.columns.items()}
        for index, name in enumerate(self.names):
            columns[name][index] = numbers[index]
        return Table(columns, self.start.labels)


def _with_thresholds(column: Column, thresholds: np.ndarray | None) -> Column:
    if thresholds is None or not len(thresholds) or column.centre is not None:
        return column
    # No squares: a LightGBM model's training data may reach 1e300.
    centre = float(np.median(thresholds))
    spread = float(np.abs(thresholds - centre).max()) / 2
    if spread == 0:
        spread = max(abs(float(thresholds[0])) / 4, 1e-3)
    return replace(column, centre=centre, spread=spread)


def _with_spread(model: TabularModel, column: Column, start: Table) -> Column:
    """Set the spread to the smallest magnitude that moves the prediction by a fifth of its largest
    move."""
    if column.is_text or column.values or column.spread:
        return column
    centre = column.centre or 0.0
    numbers = np.concatenate([[centre], centre + MAGNITUDES, centre - MAGNITUDES])
    predictions = answers_of(model, _with_column(start, column.name, numbers))
    movement = np.nan_to_num(np.abs(predictions - predictions[0]).max(axis=1))
    is_enough = np.ones(len(numbers) - 1, bool)
    if movement.max() > 0:
        is_enough = movement[1:] >= 0.2 * movement.max()
    return replace(column, centre=centre, spread=float(np.tile(MAGNITUDES, 2)[is_enough].min()))


def _with_missing(model: TabularModel, column: Column, start: Table) -> Column:
    """Set whether the library accepts a missing value, and does not return NaN for it."""
    missing = np.array([MISSING]) if column.is_text else np.array([np.nan])
    prediction = answers_of(model, _with_column(start, column.name, missing))
    return replace(column, nullable=bool(np.isfinite(prediction).all()))


def _with_column(start: Table, name: str, numbers: np.ndarray) -> Table:
    rows = start.rows(np.zeros(len(numbers), dtype=int))
    return Table({**rows.columns, name: numbers}, rows.labels)


def _random_numbers(
    column: Column, thresholds: np.ndarray | None, rng: np.random.Generator, count: int
) -> np.ndarray:
    if column.is_text:
        return _random_texts(column, rng, count)
    missing = rng.random(count) < (0.04 if column.nullable else 0.0)
    if column.values:
        return np.where(missing, np.nan, rng.choice(np.array(column.values), count))
    spread = column.spread or 1.0
    numbers = (column.centre or 0.0) + 1.5 * spread * rng.standard_normal(count)
    if thresholds is not None and len(thresholds):
        # Half of them between two thresholds, which exercises trees with many thresholds.
        near = rng.choice(thresholds, count)
        near = near + spread * rng.standard_normal(count) / max(4, len(thresholds))
        numbers = np.where(rng.random(count) < 0.5, near, numbers)
    return np.asarray(np.where(missing, np.nan, numbers))


def _random_texts(column: Column, rng: np.random.Generator, count: int) -> np.ndarray:
    known = list(column.words or column.categories) or ["a", "b", "some words in a row"]
    texts = rng.choice(np.array(known, dtype=np.str_), count)
    if column.words:
        # A few words of the vocabulary per text.
        lengths = rng.integers(1, 9, count)
        texts = np.array([" ".join(rng.choice(known, length)) for length in lengths], np.str_)
    if column.open:
        texts = np.where(rng.random(count) < 0.05, "never seen: 新", texts)
    return np.where(rng.random(count) < 0.05, MISSING, texts) if column.nullable else texts


def _jumping_segments(
    explored: ExploredModel, rows: Table, rng: np.random.Generator
) -> Iterator[tuple[int, str, float]]:
    """Yield (row, column, another row's number) where moving the column to that number changes the
    prediction."""
    number_columns = [
        column.name for column in explored.columns if not column.is_text and not column.values
    ]
    if not number_columns:
        return
    attempts = 8 * MAX_SEGMENTS
    rows_from, rows_to = rng.integers(len(rows), size=(2, attempts))
    names = [str(name) for name in rng.choice(np.array(number_columns, dtype=np.str_), attempts)]
    numbers = np.array([rows.columns[name][row] for name, row in zip(names, rows_to, strict=True)])
    current = np.array(
        [rows.columns[name][row] for name, row in zip(names, rows_from, strict=True)]
    )
    usable = np.isfinite(numbers) & np.isfinite(current) & (numbers != current)
    numbers = np.where(usable, numbers, current)
    start = rows.rows(rows_from)
    before = answers_of(explored.model, start)
    after = answers_of(explored.model, _Segments(start, names).at(numbers))
    # A refused row has NaN here, which does not count as a jump.
    has_jump = usable & (np.abs(after - before).max(axis=1) > 0)
    for index in np.flatnonzero(has_jump)[:MAX_SEGMENTS]:
        yield int(rows_from[index]), names[index], float(numbers[index])


def _bisect(
    model: TabularModel, segments: _Segments, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Halve each segment towards its larger change until its ends are neighbours."""
    at_low, at_high = answers_of(model, segments.at(low)), answers_of(model, segments.at(high))
    for _ in range(STEPS):
        middle = low + (high - low) / 2
        at_middle = answers_of(model, segments.at(middle))
        first_change = np.abs(at_middle - at_low).max(axis=1)
        second_change = np.abs(at_high - at_middle).max(axis=1)
        in_first_half = first_change >= second_change
        high, low = np.where(in_first_half, middle, high), np.where(in_first_half, low, middle)
        at_high = np.where(in_first_half[:, None], at_middle, at_high)
        at_low = np.where(in_first_half[:, None], at_low, at_middle)
    return low, high


def _rows_around(
    model: TabularModel, segments: _Segments, low: np.ndarray, high: np.ndarray
) -> Table:
    """The rows of the segments that end in a jump; a smooth prediction has none."""
    change = answers_of(model, segments.at(low)) - answers_of(model, segments.at(high))
    jumps = np.flatnonzero(np.abs(change).max(axis=1) > 1e-9)
    with np.errstate(over="ignore"):  # beyond FP32 there are no FP32 neighbours
        narrow = low.astype(np.float32)
        below = np.nextafter(narrow, np.float32(-np.inf)).astype(np.float64)
        above = np.nextafter(narrow, np.float32(np.inf)).astype(np.float64)
    below = np.where(np.isfinite(below), below, low)
    above = np.where(np.isfinite(above), above, high)
    table = segments.start.rows(slice(0, 0))
    for around, numbers in zip(AROUND, (low, high, below, above), strict=True):
        rows = segments.at(numbers).rows(jumps)
        labels = [f"{around} of {segments.names[i]!r} ({numbers[i]!r})" for i in jumps]
        table = table.join(Table(rows.columns, labels))
    return table


def is_around_a_jump(table: Table) -> np.ndarray:
    """BOOL [n]: which rows the bisections of jumps made."""
    return np.array([label.startswith(AROUND) for label in table.labels], dtype=bool)
