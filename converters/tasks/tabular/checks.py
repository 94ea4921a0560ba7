"""Prove the graph of a tabular model against the library that trained the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.proof.checks import Check, at_most
from converters.proof.closeness import beyond_noise
from converters.proof.parity import same_decision
from converters.proof.reference import Feed, Reference
from converters.proof.relative import equal, largest_relative, relative_checks
from converters.proof.runner import OpenRunner, onnx_runner
from converters.proof.self_test import answers_self_test
from converters.sources.vectorizers import FILE, read, terms
from converters.table import Table
from converters.tasks.tabular.constructed import FAR_LABEL

BATCH_SIZES = (1, 2, 64)
CHUNK = 64
TOGETHER = "together_"  # begins the names of the rows that were predicted together
# Rows beside a split differ by the leaves of one tree of many: less than this share of the spread
# is what XGBoost's own sum in FP32 loses.
SPLIT_DIFFERENCE = 1e-5
NUMBERS = {"FP32": np.float32, "FP64": np.float64}


def reference_table(reference: Reference) -> Table:
    """The rows that the original predicted."""
    return Table.from_arrays(reference.outputs)


def rows_together(reference: Reference) -> Table | None:
    """The rows for the splits of trees, which the original predicted together; None without."""
    arrays = {
        name.removeprefix(TOGETHER): array
        for name, array in reference.outputs.items()
        if name.startswith(TOGETHER)
    }
    return Table.from_arrays(arrays) if arrays else None


def steady_rows(reference: Reference) -> np.ndarray:
    """The indices of the rows at which the original's own answer does not depend on how the
    last bits are rounded: sums are rounded otherwise in a batch. All but those beside a jump."""
    noise, predictions = reference.outputs.get("answers_noise"), reference.outputs["answers"]
    if noise is None or noise.shape != predictions.shape:
        return np.arange(len(predictions))
    limit = SPLIT_DIFFERENCE * np.abs(predictions).max(initial=0.0)
    steady = np.flatnonzero(noise.max(axis=1) <= limit)
    return steady if len(steady) else np.arange(len(predictions))


def column_feeds(table: Table, metadata: Mapping[str, Any]) -> Feed:
    """One tensor per column, [n, 1]: texts as objects (str), numbers in the datatype that the
    pipeline takes."""
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
    """Scores FP64 [n, labels] in the model's order from sorted ones, NaN where a label is missing;
    and the check that each row is sorted and names each label once."""
    index_of = {label: index for index, label in enumerate(labels)}
    ordered = np.full((len(scores), len(labels)), np.nan)
    invalid = 0
    for row, (words, values) in enumerate(zip(names, scores, strict=True)):
        positions = [index_of.get(_text(word), -1) for word in words]
        is_complete = sorted(positions) == list(range(len(labels)))
        is_sorted = not np.any(np.diff(values) > 0)
        invalid += not (is_complete and is_sorted)
        for index, value in zip(positions, values, strict=True):
            if index >= 0:
                ordered[row, index] = value
    return ordered, at_most("rows without all labels in order, likeliest first", invalid, 0)


class TableGraph:
    """A reference's engine, opened by ``runner``, with its metadata and its text vectorizers."""

    def __init__(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> None:
        self._session = runner(engine)
        self.metadata = reference.metadata
        self.outputs = ["label", "score"] if self.metadata["labels"] else ["value"]
        file = reference.folder / "pre" / FILE
        self._vectorizers = read(file) if self.metadata.get("texts") else []

    def feed(self, table: Table) -> Feed:
        """The engine's inputs: the columns, and the terms of texts."""
        columns = {column["tensor"]: column for column in self.metadata["columns"]}
        texts = {tensor: table.columns[column["name"]] for tensor, column in columns.items()}
        feed = {
            tensor: values
            for tensor, values in column_feeds(table, self.metadata).items()
            if columns[tensor].get("direct", True)
        }
        for text, vectorizer in self._vectorizers:
            ids, values = terms(vectorizer, texts[text["tensor"]].tolist(), text["size"])
            feed |= {text["ids"]: ids, text["values"]: values}
        return feed

    def run(self, table: Table) -> list[np.ndarray]:
        """The graph's outputs for these rows, ``CHUNK`` at a time if texts are expanded to rows of
        a whole vocabulary."""
        size = CHUNK if self._vectorizers else max(1, len(table))
        parts = [table.rows(slice(start, start + size)) for start in range(0, len(table), size)]
        results = [self._session.run(self.outputs, dict(self.feed(part))) for part in parts]
        return [np.concatenate(outputs) for outputs in zip(*results, strict=True)]

    def alone(self, table: Table) -> list[np.ndarray]:
        """The graph's outputs, computed one row at a time."""
        results = [self.run(table.rows(slice(row, row + 1))) for row in range(len(table))]
        return [np.concatenate(outputs) for outputs in zip(*results, strict=True)]


def graph_checks(graph: TableGraph, table: Table, reference: Reference) -> list[Check]:
    """Every check of the graph on these rows."""
    alone, together = graph.alone(table), graph.run(table)
    steady = steady_rows(reference)
    return [
        *parity(alone, table, reference),
        *_same_outputs(
            f"batch invariance, all {len(table)} rows at once",
            [output[steady] for output in together],
            [output[steady] for output in alone],
            table.rows(steady),
            reference,
        ),
        *split_checks(graph, reference),
        _dynamic_batch(graph, table),
        *_same_outputs("determinism", graph.run(table), together, table, None),
        *answers_self_test(
            lambda answers: answer_checks(answers, table.labels, reference),
            reference.outputs["answers"],
        ),
    ]


def split_checks(graph: TableGraph, reference: Reference) -> list[Check]:
    """The answers to the rows for the splits of trees."""
    table = rows_together(reference)
    if table is None:
        return []
    expected, labels = reference.outputs[f"{TOGETHER}answers"], reference.metadata["labels"]
    outputs = graph.run(table)
    if labels:
        predictions, _ = scores_by_label(outputs[0], outputs[1], labels)
    else:
        predictions = outputs[0].astype(float)
    predictions = beyond_noise(
        predictions, expected, reference.outputs.get(f"{TOGETHER}answers_noise")
    )
    limits = (SPLIT_DIFFERENCE, SPLIT_DIFFERENCE)
    # The spread is that of all rows: a few beside one split may have nearly the same answer.
    others = reference.outputs["answers"]
    names = [*table.labels, *("another row" for _ in others)]
    return relative_checks(
        "parity beside splits of trees",
        np.concatenate([predictions, others]),
        np.concatenate([expected, others]),
        limits,
        names,
    )


def parity(outputs: Sequence[np.ndarray], table: Table, reference: Reference) -> list[Check]:
    """Check the pipeline's outputs (``label`` and ``score``, or ``value``) against the original."""
    rows, labels = table.labels, reference.metadata["labels"]
    if not labels:
        return answer_checks(outputs[0].astype(float), rows, reference)
    scores, order = scores_by_label(outputs[0], outputs[1], labels)
    return [*answer_checks(scores, rows, reference), order]


def answer_checks(
    predictions: np.ndarray, rows: Sequence[str], reference: Reference
) -> list[Check]:
    """Check answers FP64 [n, labels] or [n, 1], in the order of the labels, against the
    original's."""
    original, allowed = reference.outputs["answers"], reference.tolerance
    predictions = beyond_noise(predictions, original, reference.outputs.get("answers_noise"))
    limits = (allowed.difference, allowed.mean)
    name = "parity: score" if reference.metadata["labels"] else "parity: value"
    checks = relative_checks(name, predictions, original, limits, rows)
    # A polynomial of a far number widens the spread so much that it hides errors at ordinary
    # numbers.
    is_near = np.array([not row.startswith(FAR_LABEL) for row in rows], dtype=bool)
    if is_near.any() and not is_near.all():
        near_rows = [row for row, keep in zip(rows, is_near, strict=True) if keep]
        checks += relative_checks(
            f"{name}, without far numbers",
            predictions[is_near],
            original[is_near],
            limits,
            near_rows,
        )
    if not reference.metadata["labels"]:
        return checks
    return [
        *checks,
        same_decision("task: same likeliest label", predictions, original, allowed, rows),
    ]


def _same_outputs(
    name: str,
    actual: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    table: Table,
    reference: Reference | None,
) -> list[Check]:
    """Compare two runs of one graph: scores within ``invariance`` (None: identical), labels equal
    unless their scores tie."""
    limit = reference.tolerance.invariance if reference else 0.0
    numbers = next(output for output in actual if output.dtype != object)
    expected_numbers = next(output for output in expected if output.dtype != object)
    checks = [largest_relative(name, numbers, expected_numbers, limit, table.labels)]
    if len(actual) > 1:
        is_clear = np.ones(len(table), bool)
        if expected_numbers.shape[1] > 1:
            is_clear = expected_numbers[:, 0] - expected_numbers[:, 1] > 2 * limit
        rows = [label for label, keep in zip(table.labels, is_clear, strict=True) if keep]
        checks.append(
            equal(f"{name}, labels", actual[0][is_clear, :1], expected[0][is_clear, :1], rows)
        )
    return checks


def _dynamic_batch(graph: TableGraph, table: Table) -> Check:
    failures, width = 0, max(1, len(graph.metadata["labels"]))
    for size in BATCH_SIZES:
        rows = table.rows(np.arange(size) % len(table))
        failures += any(output.shape != (size, width) for output in graph.run(rows))
    return at_most("dynamic batch 1, 2, 64: wrong shapes", failures, 0)


def _text(word: Any) -> str:
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)
