"""A table's model without a server: its graph is built, proved in this process, and asked."""

import json
from pathlib import Path

import numpy as np

from converters.conversion import reference_in
from converters.tabular.oracle import noise_of_answers
from converters.tabular.proof import TableGraph, scores_by_label
from converters.tabular.table import Table
from converters.tabular.task import TabularClassification, TabularRegression, TabularTask
from converters.task import ConversionRequest, Reference


def opened(path: Path, options=None, samples=None) -> TabularTask:
    """The task that the file itself says."""
    from tidegate.task_registry import task_of

    kinds = {kind.name: kind for kind in (TabularClassification, TabularRegression)}
    options = options or {}
    return kinds[task_of(str(path), options)](ConversionRequest("t", str(path), samples, options))


def built(task: TabularTask, folder: Path) -> Reference:
    """The task's own graph with the library's answers, asked in this process."""
    folder.mkdir(exist_ok=True)
    for part in ("pre", "post"):
        (folder / part).mkdir(exist_ok=True)
    task.write_steps(folder)
    task.export(folder / "model.onnx")
    rows = task.rows
    answers = task.model.answer(rows)
    noise = noise_of_answers(task.model, rows, answers)
    np.savez(folder / "original.npz", **rows.arrays(), answers=answers, **noise)
    (folder / "metadata.json").write_text(json.dumps(task.metadata()))
    return reference_in(folder, "t", task.name, "fp32")


def failed(task: TabularTask, reference: Reference) -> list[str]:
    """The checks of the built graph that do not hold."""
    checks = task.prove_graph(reference.folder / "model.onnx", reference)
    return [check.line() for check in checks if not check.passed]


def served(reference: Reference, columns) -> np.ndarray:
    """What the built graph answers to fresh rows, in the order of the labels."""
    columns = {name: np.asarray(values) for name, values in columns.items()}
    count = len(next(iter(columns.values())))
    table = Table(columns, [f"fresh row {index}" for index in range(count)])
    outputs = TableGraph(reference.folder / "model.onnx", reference).run(table)
    labels = reference.metadata["labels"]
    return scores_by_label(*outputs, labels)[0] if labels else np.asarray(outputs[0], float)


def numbered(rows, names) -> dict[str, np.ndarray]:
    """The columns of an array [n, columns]."""
    return {name: rows[:, place] for place, name in enumerate(names)}
