"""Rows made so that they touch what a model is made of, and what they touched.

A proof holds for what it was made on. So the rows come from the model's own parts: both sides of
each threshold and the threshold itself, every leaf, every category, one that it does not know, what
is missing, every word of a vocabulary, large numbers. ``exercised`` says which parts were reached,
and names those that were not.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from converters.sources.tabular_model import Forest, TabularModel
from converters.tabular.rows import Explored, answers_of, generated_rows
from converters.tabular.table import MISSING, Column, Table
from converters.tabular.texts import sample_texts
from converters.tabular.trees2onnx import Tree

UNKNOWN = "never seen: 新"
# One row each; a column with more is sampled evenly, and the notes say how many were reached.
MOST_CATEGORIES, MOST_THRESHOLDS, MOST_TEXTS, MOST_LEAF_ROWS, CANDIDATES = 150, 12, 140, 120, 600
MOST_ROWS = 900
FAR = "plain number in"  # what such rows are labelled with
LARGE = (0.0, 1.0, -1.0, 1e6, -1e6, 16777217.0, 0.1)

Value = tuple[str, float | str]


def constructed_rows(explored: Explored, rows: Table, rng: np.random.Generator) -> Table:
    """Rows of ``rows``, each with one column's value replaced by one that means something, and rows
    that reach the leaves of the model's trees."""
    model, columns = explored.model, explored.columns
    thresholds, marks = model.thresholds(), model.marks()
    single = model.number == "FP32"
    room = max(8, MOST_ROWS // max(1, len(columns)))
    found = rows.rows(slice(0, 0))
    for column in columns:
        values: list[Value]
        if column.is_text:
            values = list(_text_values(model, column, rng))
        else:
            near = thresholds.get(column.name, np.empty(0))
            held = [*_number_values(column, near, single=single, far=model.far)]
            values = [*((f"{mark!r} in", mark) for mark in marks.get(column.name, ())), *held]
        found = found.join(_with_values(rows, column, _evenly(values, room), rng))
    return found.join(_leaf_rows(explored, rows.join(found), rng))


def exercised(explored: Explored, rows: Table, answers: np.ndarray) -> list[str]:
    """What these rows touched of the model, one sentence a part."""
    model = explored.model
    notes = [f"{len(rows)} rows were asked, each alone"]
    forest = model.forest(rows)
    if forest:
        notes.append(_leaves_note(forest))
    for column in explored.columns:
        notes.extend(_column_notes(column, rows.columns[column.name]))
    notes.extend(model.vocabulary_notes(rows))
    notes.extend(_answer_notes(model.labels, answers))
    return notes


def _column_notes(column: Column, values: np.ndarray) -> Iterator[str]:
    name = repr(column.name)
    known: set[Any]
    if column.is_text:
        known, gone = set(column.categories), values == MISSING
    else:
        known, gone = set(column.values), np.isnan(values)
    if known:
        seen = set(values[~gone].tolist())
        left = sorted(known - seen, key=str)
        strange = "an unknown one, " if column.open and seen - known else ""
        said = f"column {name}: {len(known) - len(left)} of {len(known)} categories, {strange}"
        yield said.rstrip(", ") + (f"; not reached: {_some(left)}" if left else "")
    if column.nullable and not gone.any():
        yield f"column {name}: no row had a missing value, which the model takes"


def _answer_notes(labels: Sequence[str], answers: np.ndarray) -> Iterator[str]:
    if not labels:
        yield f"values from {answers.min():.6g} to {answers.max():.6g}"
        return
    given = {labels[place] for place in answers.argmax(axis=1)}
    left = [label for label in labels if label not in given]
    yield f"likeliest labels: {len(given)} of {len(labels)}" + (
        f"; never the likeliest: {_some(left)}" if left else ""
    )


def _some(left: Sequence[object]) -> str:
    more = f" and {len(left) - 8} more" if len(left) > 8 else ""
    return ", ".join(map(repr, left[:8])) + more


def _evenly(values: list[Value], most: int) -> list[Value]:
    if len(values) <= most:
        return values
    positions = np.unique(np.linspace(0, len(values) - 1, most).astype(int))
    return [values[place] for place in positions]


def _with_values(
    rows: Table, column: Column, values: Sequence[Value], rng: np.random.Generator
) -> Table:
    chosen = rows.rows(rng.integers(len(rows), size=len(values)))
    kind = np.str_ if column.is_text else np.float64
    held = np.array([value for _, value in values], dtype=kind)
    labels = [f"{what} {column.name!r} ({value!r:.60})" for what, value in values]
    return Table({**chosen.columns, column.name: held}, labels)


def _text_values(
    model: TabularModel, column: Column, rng: np.random.Generator
) -> Iterator[tuple[str, str]]:
    if column.nullable:
        yield "missing", MISSING
    if column.open or column.blank_missing:
        yield "empty text in", ""
    if column.words or model.is_free_text(column):
        for text in sample_texts(column.words, rng, MOST_TEXTS):
            yield "text in", text
        return
    for category in column.categories[:MOST_CATEGORIES]:
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
        for value in column.values[:MOST_CATEGORIES]:
            yield "category of", value
        if column.open:
            yield "unknown category in", max(column.values) + 1
            yield "unknown category in", column.values[0] + 1e-9
        return
    centre, spread = column.centre or 0.0, column.spread or 1.0
    away = (*LARGE, centre + 40 * spread, centre - 40 * spread) if far else ()
    for value in (centre, *away):
        yield FAR, float(value)
    chosen = _evenly([("", float(each)) for each in thresholds], MOST_THRESHOLDS)
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
    """The node at which each row of ``numbers`` FP64 [n, features] ends: INT64 [n]."""
    place = np.zeros(len(numbers), dtype=np.int64)
    modes = np.asarray(tree.mode)
    while True:
        inner = tree.yes[place] >= 0
        if not inner.any():
            return place
        value = numbers[np.arange(len(numbers)), tree.feature[place]]
        threshold, mode = tree.threshold[place], modes[place]
        with np.errstate(invalid="ignore"):
            passes = np.where(mode == "BRANCH_LT", value < threshold, value <= threshold)
        passes = np.where(mode == "BRANCH_EQ", value == threshold, passes)
        passes = np.where(np.isnan(value), tree.missing[place], passes)
        place = np.where(inner, np.where(passes, tree.yes[place], tree.no[place]), place)


def _leaf_rows(explored: Explored, rows: Table, rng: np.random.Generator) -> Table:
    """Rows that reach leaves which ``rows`` do not: first of many drawn ones, then made by walking
    from a leaf to its root."""
    model, none = explored.model, rows.rows(slice(0, 0))
    forest = model.forest(rows)
    if not forest:
        return none
    reached = [set(leaves_of(tree, forest.numbers).tolist()) for tree in forest.trees]
    drawn = generated_rows(explored, rng, CANDIDATES)
    drawn = drawn.rows(np.flatnonzero(np.isfinite(answers_of(model, drawn)).all(axis=1)))
    chosen = _greedy(model, drawn, reached) if len(drawn) else none
    if not forest.direct:
        return chosen
    made = none
    for tree, seen in zip(forest.trees, reached, strict=True):
        for leaf in np.flatnonzero(tree.leaves):
            if len(made) >= MOST_LEAF_ROWS:
                return chosen.join(made)
            if int(leaf) in seen:
                continue
            start = rows.rows([int(rng.integers(len(rows)))])
            one = _towards(explored, tree, int(leaf), start)
            numbers = model.forest(one)
            if one is None or numbers is None:
                continue
            for other, others in zip(forest.trees, reached, strict=True):
                others.add(int(leaves_of(other, numbers.numbers)[0]))
            made = made.join(one)
    return chosen.join(made)


def _greedy(model: TabularModel, drawn: Table, reached: list[set[int]]) -> Table:
    forest = model.forest(drawn)
    if forest is None:
        return drawn.rows(slice(0, 0))
    ends = np.stack([leaves_of(tree, forest.numbers) for tree in forest.trees], axis=1)
    chosen: list[int] = []
    for place, row in enumerate(ends.tolist()):
        new = sum(leaf not in seen for leaf, seen in zip(row, reached, strict=True))
        if new and len(chosen) < MOST_LEAF_ROWS:
            chosen.append(place)
            for leaf, seen in zip(row, reached, strict=True):
                seen.add(leaf)
    found = drawn.rows(chosen)
    return Table(found.columns, [f"row for a leaf {place}" for place in chosen])


def _towards(explored: Explored, tree: Tree, leaf: int, start: Table) -> Table:
    """``start`` with the numbers that the way to this leaf asks for."""
    low: dict[int, float] = {}
    high: dict[int, float] = {}
    gone: set[int] = set()
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
    order = [column.name for column in explored.model.columns]
    for feature in {*low, *high} - gone:
        least, most = low.get(feature, -np.inf), high.get(feature, np.inf)
        columns[order[feature]][:] = _between(least, most, float(columns[order[feature]][0]))
    return Table(columns, [f"row for the leaf {leaf} of a tree"])


def _between(least: float, most: float, here: float) -> float:
    """A number above ``least`` and below ``most``, ``here`` if it is one."""
    if least < here < most:
        return here
    if np.isinf(least):
        return most - max(1e-6, abs(most) * 1e-3)
    if np.isinf(most):
        return least + max(1e-6, abs(least) * 1e-3)
    return least + (most - least) / 2


def _leaves_note(forest: Forest) -> str:
    total, missed, hit = 0, [], 0
    for place, tree in enumerate(forest.trees):
        ends = set(leaves_of(tree, forest.numbers).tolist())
        leaves = set(np.flatnonzero(tree.leaves).tolist())
        total, hit = total + len(leaves), hit + len(ends & leaves)
        missed += [f"tree {place} leaf {leaf}" for leaf in sorted(leaves - ends)]
    left = f"; not reached: {', '.join(missed[:5])}" if missed else ""
    more = f" and {len(missed) - 5} more" if len(missed) > 5 else ""
    return f"{hit} of {total} leaves of {len(forest.trees)} trees were reached{left}{more}"
