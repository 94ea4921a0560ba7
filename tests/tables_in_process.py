"""A tabular model without a server: its graph is built, proved and run in this process."""

import json
from pathlib import Path

import numpy as np

from converters.conversion import reference_in
from converters.proof.reference import Reference
from converters.table import Table
from converters.task import ConversionRequest
from converters.tasks.tabular.checks import TOGETHER, TableGraph, scores_by_label
from converters.tasks.tabular.reference import noise_of_answers
from converters.tasks.tabular.task import TabularClassification, TabularRegression, TabularTask


def open_task(path: Path, options=None, samples=None) -> TabularTask:
    """The task for the file, as its own type says."""
    from tidegate.app.task_registry import task_of

    tasks = {task.name: task for task in (TabularClassification, TabularRegression)}
    options = options or {}
    return tasks[task_of(str(path), options)](ConversionRequest("t", str(path), samples, options))


def build_reference(task: TabularTask, folder: Path) -> Reference:
    """The task's own graph with the library's predictions, computed in this process."""
    folder.mkdir(exist_ok=True)
    for part in ("pre", "post"):
        (folder / part).mkdir(exist_ok=True)
    task.write_steps(folder)
    task.export(folder / "model.onnx")
    rows = task.rows
    answers = task.model.scores(rows)
    noise = noise_of_answers(task.model, rows, answers)
    together = {}
    if len(more := task.split_rows.rows):
        beside = task.model.scores(more)
        beside_noise = noise_of_answers(task.model, more, beside)
        together = {**more.arrays(), "answers": beside, **beside_noise}
    named = {f"{TOGETHER}{name}": array for name, array in together.items()}
    np.savez(folder / "original.npz", **rows.arrays(), answers=answers, **noise, **named)
    (folder / "metadata.json").write_text(json.dumps(task.metadata()))
    return reference_in(folder, "t", task, "fp32")


def failed_checks(task: TabularTask, reference: Reference) -> list[str]:
    """The checks of the built graph that fail."""
    checks = task.prove_graph(reference.folder / "model.onnx", reference)
    return [check.line() for check in checks if not check.passed]


def graph_scores(reference: Reference, columns) -> np.ndarray:
    """The built graph's outputs for new rows, in the order of the labels."""
    columns = {name: np.asarray(values) for name, values in columns.items()}
    count = len(next(iter(columns.values())))
    table = Table(columns, [f"new row {index}" for index in range(count)])
    outputs = TableGraph(reference.folder / "model.onnx", reference).run(table)
    labels = reference.metadata["labels"]
    return scores_by_label(*outputs, labels)[0] if labels else np.asarray(outputs[0], float)


def named_columns(rows, names) -> dict[str, np.ndarray]:
    """The columns of an array [n, columns], by name."""
    return {name: rows[:, index] for index, name in enumerate(names)}
