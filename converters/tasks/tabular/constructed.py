"""Rows constructed to exercise every part of a model, and a report of what they exercised.

A proof holds for the rows that it used. So the rows come from the model's own parts: both sides of
each threshold and the threshold itself, every leaf, every category, an unknown one, a missing one,
every word of a vocabulary, large numbers. ``exercised`` says which parts were reached, and names
those that were not.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from converters.export.trees2onnx import Tree
from converters.sources.tabular_model import Forest, TabularModel
from converters.table import MISSING, Column, Table
from converters.tasks.tabular.rows import ExploredModel, answers_of, generated_rows
from converters.tasks.tabular.vectorizer_texts import sample_texts

UNKNOWN = "never seen: 新"
# One row each; a larger column is sampled evenly, and the notes say how many were reached.
MAX_CATEGORIES, MAX_THRESHOLDS, MAX_TEXTS, MAX_LEAF_ROWS, CANDIDATES = 150, 12, 140, 120, 600
MAX_ROWS = 900
FAR_LABEL = "plain number in"  # the beginning of these rows' labels
LARGE = (0.0, 1.0, -1.0, 1e6, -1e6, 16777217.0, 0.1)

Value = tuple[str, float | str]


def constructed_rows(explored: ExploredModel, rows: Table, rng: np.random.Generator) -> Table:
    """Rows of ``rows``, each with one column's value replaced by a significant one, and rows that
    reach the leaves of the model's trees."""
    model, columns = explored.model, explored.columns
    thresholds, marks = model.thresholds(), model.marks()
    single = model.number == "FP32"
    rows_per_column = max(8, MAX_ROWS // max(1, len(columns)))
    constructed = rows.rows(slice(0, 0))
    for column in columns:
        values: list[Value]
        if column.is_text:
            values = list(_text_values(model, column, rng))
        else:
            column_thresholds = thresholds.get(column.name, np.empty(0))
            numbers = [*_number_values(column, column_thresholds, single=single, far=model.far)]
            marked = [(f"{mark!r} in", mark) for mark in marks.get(column.name, ())]
            values = [*marked, *numbers]
        constructed = constructed.join(
            _with_values(rows, column, _evenly(values, rows_per_column), rng)
        )
    return constructed.join(_leaf_rows(explored, rows.join(constructed), rng))


def exercised(explored: ExploredModel, rows: Table, predictions: np.ndarray) -> list[str]:
    """What these rows exercised in the model, one sentence per part."""
    model = explored.model
    notes = [f"{len(rows)} rows were predicted, each alone"]
    forest = model.forest(rows)
    if forest:
        notes.append(_leaves_note(forest))
    for column in explored.columns:
        notes.extend(_column_notes(column, rows.columns[column.name]))
    notes.extend(model.vocabulary_notes(rows))
    notes.extend(_answer_notes(model.labels, predictions))
    return notes


def _column_notes(column: Column, values: np.ndarray) -> Iterator[str]:
    name = repr(column.name)
    known: set[Any]
    if column.is_text:
        known, missing = set(column.categories), values == MISSING
    else:
        known, missing = set(column.values), np.isnan(values)
    if known:
        seen = set(values[~missing].tolist())
        unreached = sorted(known - seen, key=str)
        unknown = "an unknown one, " if column.open and seen - known else ""
        note = f"column {name}: {len(known) - len(unreached)} of {len(known)} categories, {unknown}"
        yield note.rstrip(", ") + (f"; not reached: {_quoted(unreached)}" if unreached else "")
    if column.nullable and not missing.any():
        yield f"column {name}: no row had a missing value, which the model takes"


def _answer_notes(labels: Sequence[str], predictions: np.ndarray) -> Iterator[str]:
    if not labels:
        yield f"values from {predictions.min():.6g} to {predictions.max():.6g}"
        return
    reached = {labels[index] for index in predictions.argmax(axis=1)}
    unreached = [label for label in labels if label not in reached]
    yield f"likeliest labels: {len(reached)} of {len(labels)}" + (
        f"; never the likeliest: {_quoted(unreached)}" if unreached else ""
    )


def _quoted(names: Sequence[object]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(map(repr, names[:8])) + more


def _evenly(values: list[Value], limit: int) -> list[Value]:
    if len(values) <= limit:
        return values
    positions = np.unique(np.linspace(0, len(values) - 1, limit).astype(int))
    return [values[index] for index in positions]


def _with_values(
    rows: Table, column: Column, values: Sequence[Value], rng: np.random.Generator
) -> Table:
    start = rows.rows(rng.integers(len(rows), size=len(values)))
    dtype = np.str_ if column.is_text else np.float64
    replacement = np.array([value for _, value in values], dtype=dtype)
    labels = [f"{description} {column.name!r} ({value!r:.60})" for description, value in values]
    return Table({**start.columns, column.name: replacement}, labels)


def _text_values(
    model: TabularModel, column: Column, rng: np.random.Generator
) -> Iterator[tuple[str, str]]:
    if column.nullable:
        yield "missing", MISSING
    if column.open:
        yield "empty text in", ""
    if column.words or model.is_free_text(column):
        for text in sample_texts(column.words, rng, MAX_TEXTS):
            yield "text in", text
        return
    for category in column.categories[:MAX_CATEGORIES]:
        yield "category of", category
    if column.open:
        yield "unknown category in", UNKNOWN
        for category in column.categories[:3]:
            yield "nearly a category of", f" {category}"
            yield "nearly a category of", category.swapcase()


def _number_values(
    column: Column, thresholds: np.ndarray, *, single: bool, far: bool
) -> Iterator[tuple[str, float]]:
    if column.nullable:
        yield "missing", float("nan")
    if column.values:
        for value in column.values[:MAX_CATEGORIES]:
            yield "category of", value
        if column.open:
            yield "unknown category in", max(column.values) + 1
            yield "unknown category in", column.values[0] + 1e-9
        return
    centre, spread = column.centre or 0.0, column.spread or 1.0
    away = (*LARGE, centre + 40 * spread, centre - 40 * spread) if far else ()
    for value in (centre, *away):
        yield FAR_LABEL, float(value)
    chosen = _evenly([("", float(threshold)) for threshold in thresholds], MAX_THRESHOLDS)
    with np.errstate(over="ignore"):
        for _, threshold in chosen:
            number = np.float32(threshold) if single else np.float64(threshold)
            for side in (-np.inf, np.inf):
                near = float(np.nextafter(number, type(number)(side)))
                if np.isfinite(near):
                    yield "beside a threshold of", near
            yield "at a threshold of", float(number)


# Leaves


def leaves_of(tree: Tree, numbers: np.ndarray) -> np.ndarray:
    """The node at which each row of ``numbers`` FP64 [n, features] ends, INT64 [n]."""
    for node in _steps_down(tree, numbers):
        leaves = node
    return leaves


def visited_nodes(tree: Tree, numbers: np.ndarray) -> np.ndarray:
    """Which nodes some row of ``numbers`` FP64 [n, features] visits: BOOL [nodes]."""
    visited = np.zeros(len(tree.yes), dtype=bool)
    for node in _steps_down(tree, numbers):
        visited[node] = True
    return visited


def passes(mode: Any, value: np.ndarray, threshold: Any, missing: Any = False) -> np.ndarray:
    """Whether each ``value`` FP64 [n] passes the split with this ``mode`` and ``threshold``, and
    NaN as ``missing`` says: BOOL [n]. Each may be one for all, or [n]."""
    with np.errstate(invalid="ignore"):
        result = np.where(np.equal(mode, "BRANCH_LT"), value < threshold, value <= threshold)
    result = np.where(np.equal(mode, "BRANCH_EQ"), value == threshold, result)
    return np.asarray(np.where(np.isnan(value), missing, result), dtype=bool)


def _steps_down(tree: Tree, numbers: np.ndarray) -> Iterator[np.ndarray]:
    """The node of each row, INT64 [n], after no step, one, two, ... until all are at leaves."""
    node = np.zeros(len(numbers), dtype=np.int64)
    modes = np.asarray(tree.mode)
    yield node
    while (inner := tree.yes[node] >= 0).any():
        value = numbers[np.arange(len(numbers)), tree.feature[node]]
        yes = passes(modes[node], value, tree.threshold[node], tree.missing[node])
        node = np.where(inner, np.where(yes, tree.yes[node], tree.no[node]), node)
        yield node


def _leaf_rows(explored: ExploredModel, rows: Table, rng: np.random.Generator) -> Table:
    """Rows that reach leaves which ``rows`` do not: first chosen from many random ones, then
    constructed by walking from a leaf to its root."""
    model, empty = explored.model, rows.rows(slice(0, 0))
    forest = model.forest(rows)
    if not forest:
        return empty
    reached = [set(leaves_of(tree, forest.numbers).tolist()) for tree in forest.trees]
    candidates = generated_rows(explored, rng, CANDIDATES)
    candidates = candidates.rows(
        np.flatnonzero(np.isfinite(answers_of(model, candidates)).all(axis=1))
    )
    chosen = _chosen_rows(model, candidates, reached) if len(candidates) else empty
    if not forest.direct:
        return chosen
    constructed = empty
    for tree, seen in zip(forest.trees, reached, strict=True):
        for leaf in np.flatnonzero(tree.leaves):
            if len(constructed) >= MAX_LEAF_ROWS:
                return chosen.join(constructed)
            if int(leaf) in seen:
                continue
            start = rows.rows([int(rng.integers(len(rows)))])
            row = _row_to_leaf(explored, tree, int(leaf), start)
            row_forest = model.forest(row)
            if row is None or row_forest is None:
                continue
            for other, other_reached in zip(forest.trees, reached, strict=True):
                other_reached.add(int(leaves_of(other, row_forest.numbers)[0]))
            constructed = constructed.join(row)
    return chosen.join(constructed)


def _chosen_rows(model: TabularModel, candidates: Table, reached: list[set[int]]) -> Table:
    forest = model.forest(candidates)
    if forest is None:
        return candidates.rows(slice(0, 0))
    ends = np.stack([leaves_of(tree, forest.numbers) for tree in forest.trees], axis=1)
    chosen: list[int] = []
    for index, row in enumerate(ends.tolist()):
        new_leaves = sum(leaf not in seen for leaf, seen in zip(row, reached, strict=True))
        if new_leaves and len(chosen) < MAX_LEAF_ROWS:
            chosen.append(index)
            for leaf, seen in zip(row, reached, strict=True):
                seen.add(leaf)
    rows = candidates.rows(chosen)
    return Table(rows.columns, [f"row for a leaf {index}" for index in chosen])


def _row_to_leaf(explored: ExploredModel, tree: Tree, leaf: int, start: Table) -> Table:
    """``start`` with the numbers that the path to this leaf requires."""
    low: dict[int, float] = {}
    high: dict[int, float] = {}
    parents = {int(child): (node, yes) for node in range(len(tree.yes)) if tree.yes[node] >= 0
               for child, yes in ((tree.yes[node], True), (tree.no[node], False))}  # fmt: skip
    node = leaf
    while node in parents:
        node, passes = parents[node]
        feature, threshold = int(tree.feature[node]), float(tree.threshold[node])
        if passes:
            high[feature] = min(high.get(feature, np.inf), threshold)
        else:
            low[feature] = max(low.get(feature, -np.inf), threshold)
    columns = {name: values.copy() for name, values in start.columns.items()}
    names = [column.name for column in explored.model.columns]
    for feature in {*low, *high}:
        lower, upper = low.get(feature, -np.inf), high.get(feature, np.inf)
        columns[names[feature]][:] = _between(lower, upper, float(columns[names[feature]][0]))
    return Table(columns, [f"row for the leaf {leaf} of a tree"])


def _between(lower: float, upper: float, current: float) -> float:
    """A number above ``lower`` and below ``upper``, ``current`` if it is one."""
    if lower < current < upper:
        return current
    if np.isinf(lower):
        return upper - max(1e-6, abs(upper) * 1e-3)
    if np.isinf(upper):
        return lower + max(1e-6, abs(lower) * 1e-3)
    return lower + (upper - lower) / 2


def _leaves_note(forest: Forest) -> str:
    total, unreached, reached = 0, [], 0
    for index, tree in enumerate(forest.trees):
        ends = set(leaves_of(tree, forest.numbers).tolist())
        leaves = set(np.flatnonzero(tree.leaves).tolist())
        total, reached = total + len(leaves), reached + len(ends & leaves)
        unreached += [f"tree {index} leaf {leaf}" for leaf in sorted(leaves - ends)]
    names = f"; not reached: {', '.join(unreached[:5])}" if unreached else ""
    rest = f" and {len(unreached) - 5} more" if len(unreached) > 5 else ""
    return f"{reached} of {total} leaves of {len(forest.trees)} trees were reached{names}{rest}"
