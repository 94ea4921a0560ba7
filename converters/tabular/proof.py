"""Prove a graph of a table's columns against the library that trained the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.closeness import beyond_noise
from converters.parity import same_decision
from converters.proof import Check, at_most
from converters.relative import equal, largest_relative, relative_checks
from converters.runner import OpenRunner, onnx_runner
from converters.self_test import answers_self_test
from converters.tabular.constructed import FAR
from converters.tabular.table import Table
from converters.tabular.vectorizers import FILE, read, terms
from converters.task import Feed, Reference

BATCH_SIZES = (1, 2, 64)
CHUNK = 64
NUMBERS = {"FP32": np.float32, "FP64": np.float64}


def case_table(reference: Reference) -> Table:
    """The rows that the original has answered."""
    return Table.from_arrays(reference.answers)


def column_feeds(table: Table, metadata: Mapping[str, Any]) -> Feed:
    """One tensor a column, [n, 1]: texts as objects (str), numbers as the pipeline takes them."""
    number = NUMBERS[metadata["number"]]
    return {
        column["tensor"]: table.columns[column["name"]].astype(
            object if column["is_text"] else number
        )[:, None]
        for column in metadata["columns"]
    }


def scores_by_label(
    names: np.ndarray, scores: np.ndarray, labels: Sequence[str]
) -> tuple[np.ndarray, Check]:
    """Scores FP64 [n, labels] in the model's order from sorted ones; NaN where a label is missing.
    And the check that each row is sorted and names each label once."""
    order = {label: index for index, label in enumerate(labels)}
    found = np.full((len(scores), len(labels)), np.nan)
    wrong = 0
    for row, (words, values) in enumerate(zip(names, scores, strict=True)):
        positions = [order.get(_text(word), -1) for word in words]
        wrong += sorted(positions) != list(range(len(labels))) or bool(np.any(np.diff(values) > 0))
        for place, value in zip(positions, values, strict=True):
            if place >= 0:
                found[row, place] = value
    return found, at_most("rows whose labels are not all there, likeliest first", wrong, 0)


class TableGraph:
    """The engine, opened by ``runner``, of a case: its metadata, and the vectorizers of its
    texts."""

    def __init__(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> None:
        self._session = runner(engine)
        self.metadata = reference.metadata
        self.outputs = ["label", "score"] if self.metadata["labels"] else ["value"]
        file = reference.folder / "pre" / FILE
        self._vectorizers = read(file) if self.metadata.get("texts") else []

    def feed(self, table: Table) -> Feed:
        """What the engine reads: the columns, and the terms of texts."""
        columns = {c["tensor"]: c for c in self.metadata["columns"]}
        texts = {tensor: table.columns[c["name"]] for tensor, c in columns.items()}
        feed = {
            tensor: values
            for tensor, values in column_feeds(table, self.metadata).items()
            if columns[tensor].get("direct", True)
        }
        for held, vectorizer in self._vectorizers:
            ids, values = terms(vectorizer, texts[held["tensor"]].tolist(), held["size"])
            feed |= {held["ids"]: ids, held["values"]: values}
        return feed

    def run(self, table: Table) -> list[np.ndarray]:
        """The graph's own outputs for these rows; where texts are spread out to rows of a whole
        vocabulary, ``CHUNK`` at a time."""
        size = CHUNK if self._vectorizers else max(1, len(table))
        parts = [table.rows(slice(at, at + size)) for at in range(0, len(table), size)]
        each = [self._session.run(self.outputs, dict(self.feed(part))) for part in parts]
        return [np.concatenate(outputs) for outputs in zip(*each, strict=True)]

    def alone(self, table: Table) -> list[np.ndarray]:
        """The same, asked about one row at a time."""
        each = [self.run(table.rows(slice(row, row + 1))) for row in range(len(table))]
        return [np.concatenate(outputs) for outputs in zip(*each, strict=True)]


def graph_checks(graph: TableGraph, table: Table, reference: Reference) -> list[Check]:
    """Every check of the graph on these rows."""
    alone, together = graph.alone(table), graph.run(table)
    return [
        *parity(alone, table, reference),
        *_same(
            f"batch invariance, all {len(table)} rows at once", together, alone, table, reference
        ),
        _dynamic_batch(graph, table),
        *_same("determinism", graph.run(table), together, table, None),
        *answers_self_test(
            lambda answers: answer_checks(answers, table.labels, reference),
            reference.answers["answers"],
        ),
    ]


def parity(outputs: Sequence[np.ndarray], table: Table, reference: Reference) -> list[Check]:
    """The pipeline's outputs (``label`` and ``score``, or ``value``) against the original."""
    rows, labels = table.labels, reference.metadata["labels"]
    if not labels:
        return answer_checks(outputs[0].astype(float), rows, reference)
    scores, order = scores_by_label(outputs[0], outputs[1], labels)
    return [*answer_checks(scores, rows, reference), order]


def answer_checks(answers: np.ndarray, rows: Sequence[str], reference: Reference) -> list[Check]:
    """Answers FP64 [n, labels] or [n, 1], in the order of the labels, against the original's."""
    original, allowed = reference.answers["answers"], reference.tolerance
    answers = beyond_noise(answers, original, reference.answers.get("answers_noise"))
    limits = (allowed.difference, allowed.mean)
    what = "parity: score" if reference.metadata["labels"] else "parity: value"
    checks = relative_checks(what, answers, original, limits, rows)
    # A polynomial of a far number hides in its spread what goes wrong where people ask.
    near = np.array([not row.startswith(FAR) for row in rows], dtype=bool)
    if near.any() and not near.all():
        kept = [row for row, keep in zip(rows, near, strict=True) if keep]
        checks += relative_checks(
            f"{what}, without far numbers", answers[near], original[near], limits, kept
        )
    if not reference.metadata["labels"]:
        return checks
    return [
        *checks,
        same_decision("task: same likeliest label", answers, original, allowed, rows),
    ]


def _same(
    name: str,
    got: Sequence[np.ndarray],
    wanted: Sequence[np.ndarray],
    table: Table,
    reference: Reference | None,
) -> list[Check]:
    """Two runs of one graph: scores within ``invariance`` (None: the very same), labels equal
    unless their scores tie."""
    limit = reference.tolerance.invariance if reference else 0.0
    numbers = next(each for each in got if each.dtype != object)
    first = next(each for each in wanted if each.dtype != object)
    checks = [largest_relative(name, numbers, first, limit, table.labels)]
    if len(got) > 1:
        clear = np.ones(len(table), bool)
        if first.shape[1] > 1:
            clear = first[:, 0] - first[:, 1] > 2 * limit
        rows = [label for label, keep in zip(table.labels, clear, strict=True) if keep]
        checks.append(equal(f"{name}, labels", got[0][clear, :1], wanted[0][clear, :1], rows))
    return checks


def _dynamic_batch(graph: TableGraph, table: Table) -> Check:
    wrong, width = 0, max(1, len(graph.metadata["labels"]))
    for size in BATCH_SIZES:
        rows = table.rows(np.arange(size) % len(table))
        wrong += any(output.shape != (size, width) for output in graph.run(rows))
    return at_most("dynamic batch 1, 2, 64: shapes that went wrong", wrong, 0)


def _text(word: Any) -> str:
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)
