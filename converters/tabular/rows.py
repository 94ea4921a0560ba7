"""Rows to ask a model about where no user gave any, and rows at its very thresholds.

A conversion of trees goes wrong at a threshold: a number between it and its rounding falls on the
other side. So pairs of neighbouring numbers between which the library's own answer changes are
found by bisection, whatever stands before the trees.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from converters.errors import SourceRefused
from converters.sources.tabular_model import TabularModel
from converters.tabular.table import MISSING, Column, Table, ordinary_row

ROWS, LINES = 80, 24
# Doubles between two numbers are halved away in fewer than 64 steps from any two of one size.
STEPS = 80
MOST_ANSWER = 1e30
# Where a model says nothing of a column: the magnitudes at which its answer is looked for.
MAGNITUDES = np.array([0.01, 0.1, 1, 10, 100, 1e3, 1e4])


@dataclass(frozen=True)
class Explored:
    """A model whose every column has a centre, a spread and a say about missing values."""

    model: TabularModel
    columns: tuple[Column, ...]


def explore(model: TabularModel) -> Explored:
    """Ask the model what it does not say of its columns."""
    thresholds = model.thresholds()
    columns = [_with_thresholds(each, thresholds.get(each.name)) for each in model.columns]
    start = ordinary_row(columns)
    columns = [_with_spread(model, column, start) for column in columns]
    return Explored(model, tuple(_with_missing(model, column, start) for column in columns))


def answers_of(model: TabularModel, rows: Table) -> np.ndarray:
    """The library's answers FP64 [n, width]; NaN in a row that it refuses."""
    if not len(rows):
        return np.empty((0, max(1, len(model.labels))))
    try:
        return model.answer(rows)
    except SourceRefused:
        raise
    except Exception:  # whatever a library raises of a row that it does not take
        width, found = max(1, len(model.labels)), []
        for place in range(len(rows)):
            try:
                found.append(model.answer(rows.rows(slice(place, place + 1)))[0])
            except Exception:
                found.append(np.full(width, np.nan))
        return np.stack(found)


def answered(model: TabularModel, rows: Table) -> tuple[Table, Table]:
    """The rows that the library answers, and those that it refuses or answers with NaN, or with
    what is beyond every use and nearly beyond FP32 (an exponential of a made-up number)."""
    answers = answers_of(model, rows)
    size = np.abs(answers)
    fits = np.isfinite(answers) & (size < MOST_ANSWER)
    if not model.labels:
        fits &= (size == 0) | (size > 1 / MOST_ANSWER)
    finite = fits.all(axis=1)
    return rows.rows(np.flatnonzero(finite)), rows.rows(np.flatnonzero(~finite))


def positive_rows(explored: Explored, rows: Table) -> Table:
    """The rows with every number above 0: some steps (a logarithm, Box-Cox) take no others."""
    least = {column.name: 1e-3 * (column.spread or 1.0) for column in explored.columns}
    columns = {
        name: values if values.dtype.kind == "U" else np.abs(values) + least[name]
        for name, values in rows.columns.items()
    }
    return Table(columns, rows.labels)


def generated_rows(explored: Explored, rng: np.random.Generator, count: int = ROWS) -> Table:
    """``count`` rows drawn around each column's centre, from its thresholds and its categories."""
    thresholds = explored.model.thresholds()
    drawn = {
        column.name: _drawn(column, thresholds.get(column.name), rng, count)
        for column in explored.columns
    }
    labels = [f"generated row {index}" for index in range(count)]
    return Table(drawn, labels)


def boundary_rows(explored: Explored, rows: Table, rng: np.random.Generator) -> Table:
    """Up to ``LINES`` places where the answer jumps along one column between two of ``rows``; four
    rows each: the neighbouring FP64 numbers, and the FP32 ones around them. May have no row."""
    # Nearest neighbours jump too, but where two distances are equal: no two libraries agree there.
    lines = list(_lines(explored, rows, rng)) if explored.model.steps else []
    if not lines:
        return rows.rows(slice(0, 0))
    start = rows.rows([line[0] for line in lines])
    names = [line[1] for line in lines]
    low = np.array([rows.columns[name][line[0]] for line, name in zip(lines, names, strict=True)])
    high = np.array([line[2] for line in lines])
    low, high = _bisect(explored.model, _Lines(start, names), low, high)
    return _around(explored.model, _Lines(start, names), low, high)


@dataclass(frozen=True)
class _Lines:
    """Row i of ``start`` with another number in the column ``names[i]``."""

    start: Table
    names: list[str]

    def at(self, numbers: np.ndarray) -> Table:
        columns = {name: values.copy() for name, values in self.start.columns.items()}
        for index, name in enumerate(self.names):
            columns[name][index] = numbers[index]
        return Table(columns, self.start.labels)


def _with_thresholds(column: Column, found: np.ndarray | None) -> Column:
    if found is None or not len(found) or column.centre is not None:
        return column
    # No squares: what a LightGBM model is trained on may be 1e300.
    spread = float(np.abs(found - np.median(found)).max()) / 2 or max(
        abs(float(found[0])) / 4, 1e-3
    )
    return replace(column, centre=float(np.median(found)), spread=spread)


def _with_spread(model: TabularModel, column: Column, start: Table) -> Column:
    """The smallest magnitude at which the answer has moved by a fifth of what it ever moves."""
    if column.is_text or column.values or column.spread:
        return column
    centre = column.centre or 0.0
    numbers = np.concatenate([[centre], centre + MAGNITUDES, centre - MAGNITUDES])
    answers = answers_of(model, _repeated(start, column.name, numbers))
    moved = np.nan_to_num(np.abs(answers - answers[0]).max(axis=1))
    enough = moved[1:] >= 0.2 * moved.max() if moved.max() > 0 else np.ones(len(numbers) - 1, bool)
    return replace(column, centre=centre, spread=float(np.tile(MAGNITUDES, 2)[enough].min()))


def _with_missing(model: TabularModel, column: Column, start: Table) -> Column:
    """Whether the library answers to a missing value, and not with a NaN of its own."""
    gone = np.array([MISSING]) if column.is_text else np.array([np.nan])
    answer = answers_of(model, _repeated(start, column.name, gone))
    return replace(column, nullable=bool(np.isfinite(answer).all()))


def _repeated(start: Table, name: str, numbers: np.ndarray) -> Table:
    rows = start.rows(np.zeros(len(numbers), dtype=int))
    return Table({**rows.columns, name: numbers}, rows.labels)


def _drawn(
    column: Column, found: np.ndarray | None, rng: np.random.Generator, count: int
) -> np.ndarray:
    if column.is_text:
        return _texts(column, rng, count)
    missing = rng.random(count) < (0.04 if column.nullable else 0.0)
    if column.values:
        return np.where(missing, np.nan, rng.choice(np.array(column.values), count))
    spread = column.spread or 1.0
    numbers = (column.centre or 0.0) + 1.5 * spread * rng.standard_normal(count)
    if found is not None and len(found):
        # Half of them between two thresholds, where trees with many of them have their say.
        near = rng.choice(found, count) + spread * rng.standard_normal(count) / max(4, len(found))
        numbers = np.where(rng.random(count) < 0.5, near, numbers)
    return np.asarray(np.where(missing, np.nan, numbers))


def _texts(column: Column, rng: np.random.Generator, count: int) -> np.ndarray:
    known = list(column.words or column.categories) or ["a", "b", "some words in a row"]
    texts = rng.choice(np.array(known, dtype=np.str_), count)
    if column.words:
        # Some words of the vocabulary a text.
        lengths = rng.integers(1, 9, count)
        texts = np.array([" ".join(rng.choice(known, length)) for length in lengths], np.str_)
    if column.open:
        texts = np.where(rng.random(count) < 0.05, "never seen: 新", texts)
    if column.blank_missing:
        texts = np.where(rng.random(count) < 0.05, "", texts)
    return np.where(rng.random(count) < 0.05, MISSING, texts) if column.nullable else texts


def _lines(
    explored: Explored, rows: Table, rng: np.random.Generator
) -> Iterator[tuple[int, str, float]]:
    """(row, column, another row's number), where moving there changes the answer."""
    free = [c.name for c in explored.columns if not c.is_text and not c.values]
    if not free:
        return
    tries = 8 * LINES
    chosen, other = rng.integers(len(rows), size=(2, tries))
    names = [str(name) for name in rng.choice(np.array(free, dtype=np.str_), tries)]
    numbers = np.array([rows.columns[n][i] for n, i in zip(names, other, strict=True)])
    here = np.array([rows.columns[n][i] for n, i in zip(names, chosen, strict=True)])
    usable = np.isfinite(numbers) & np.isfinite(here) & (numbers != here)
    numbers = np.where(usable, numbers, here)
    start = rows.rows(chosen)
    before = answers_of(explored.model, start)
    after = answers_of(explored.model, _Lines(start, names).at(numbers))
    # A row that it refuses has NaN here, which is no move.
    moved = usable & (np.abs(after - before).max(axis=1) > 0)
    for place in np.flatnonzero(moved)[:LINES]:
        yield int(chosen[place]), names[place], float(numbers[place])


def _bisect(
    model: TabularModel, lines: _Lines, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Halve each line towards its larger change until its ends are neighbours."""
    at_low, at_high = answers_of(model, lines.at(low)), answers_of(model, lines.at(high))
    for _ in range(STEPS):
        middle = low + (high - low) / 2
        between = answers_of(model, lines.at(middle))
        first = np.abs(between - at_low).max(axis=1) >= np.abs(at_high - between).max(axis=1)
        high, low = np.where(first, middle, high), np.where(first, low, middle)
        at_high = np.where(first[:, None], between, at_high)
        at_low = np.where(first[:, None], at_low, between)
    return low, high


def _around(model: TabularModel, lines: _Lines, low: np.ndarray, high: np.ndarray) -> Table:
    """The rows of those lines that end in a jump; a smooth answer has none."""
    gap = np.abs(answers_of(model, lines.at(low)) - answers_of(model, lines.at(high))).max(axis=1)
    jumps = np.flatnonzero(gap > 1e-9)
    with np.errstate(over="ignore"):  # beyond FP32 there are no FP32 neighbours
        narrow = low.astype(np.float32)
        below = np.nextafter(narrow, np.float32(-np.inf)).astype(np.float64)
        above = np.nextafter(narrow, np.float32(np.inf)).astype(np.float64)
    below = np.where(np.isfinite(below), below, low)
    above = np.where(np.isfinite(above), above, high)
    ends: list[Any] = [
        ("just below", low),
        ("just above", high),
        ("below", below),
        ("above", above),
    ]
    table = lines.start.rows(slice(0, 0))
    for word, numbers in ends:
        rows = lines.at(numbers).rows(jumps)
        labels = [f"{word} a threshold of {lines.names[i]!r} ({numbers[i]!r})" for i in jumps]
        table = table.join(Table(rows.columns, labels))
    return table
