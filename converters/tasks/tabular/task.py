"""The tasks ``tabular-classification`` and ``tabular-regression``: a row of named columns -> a
prediction."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from threadpoolctl import threadpool_limits

from converters.cache import Progress, files_sha256
from converters.errors import ExportFailed, SourceRefused, no_traceback
from converters.export.tabular_graph import Shape, public_graph, tensor_name
from converters.proof.checks import Check
from converters.proof.reference import Feed, Reference
from converters.proof.runner import OpenRunner, onnx_runner
from converters.sources.booster_probe import require_loadable
from converters.sources.tabular_file import open_model
from converters.sources.tabular_model import TabularModel
from converters.sources.vectorizers import FILE, size_of, write
from converters.table import MISSING, Table, read_csv
from converters.task import ConversionRequest, Task
from converters.tasks.tabular.checks import (
    TOGETHER,
    TableGraph,
    column_feeds,
    graph_checks,
    reference_table,
)
from converters.tasks.tabular.constructed import constructed_rows, exercised
from converters.tasks.tabular.reference import ask_library, ask_together
from converters.tasks.tabular.rows import (
    boundary_rows,
    explore,
    generated_rows,
    partition_by_answer,
    positive_rows,
)
from converters.tasks.tabular.served import served_checks
from converters.tasks.tabular.splits import SplitRows, split_rows
from modelspec.golden import Golden

SEED = 20240229
TRIAL_ROWS = 400  # rows that a new graph is run on before the original is
# A tie is not a disagreement, whichever way it is rounded.
DECISION_GAP = 1e-6
PACKAGES = ("scikit-learn", "skl2onnx", "skops")


class TabularTask(Task):
    """The original's outputs are the rows (``Table.arrays``) and the result of ``ask_library``."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    options: ClassVar[tuple[str, ...]] = ("missing", "iteration_range")
    tests_graphs: ClassVar[bool] = False
    classifies: ClassVar[bool]

    def __init__(self, request: ConversionRequest) -> None:
        super().__init__(request)
        require_loadable(Path(request.source))
        self.model: TabularModel = open_model(Path(request.source), request.options)
        _require_task(self, self.model)
        # Many small predictions: threads would only wait for one another.
        failure = f"{request.source} does not predict generated rows"
        with (
            threadpool_limits(1),
            warnings.catch_warnings(),
            no_traceback(SourceRefused, failure, "try it in Python with your own rows"),
        ):
            warnings.simplefilter("ignore")
            self.explored = explore(self.model)
        self.samples = read_csv(request.samples, self.explored.columns) if request.samples else None

    def files(self) -> list[Path]:
        return [Path(self.request.source)]

    def settings(self) -> str:
        samples = files_sha256([self.request.samples]) if self.request.samples else "generated"
        return " ".join([samples, *(f"{name}={version(name)}" for name in PACKAGES)])

    def metadata(self) -> dict[str, Any]:
        columns = [
            {
                **column.metadata(),
                "tensor": tensor_name(column.name),
                "direct": self.model.direct(column),
            }
            for column in self.explored.columns
        ]
        return {
            "columns": [
                {
                    **column,
                    "categories": list(column["categories"]),
                    "values": list(column["values"]),
                }
                for column in columns
            ],
            "number": self.model.number,
            "labels": list(self.model.labels),
            "texts": [
                {
                    "tensor": tensor_name(name),
                    "ids": f"terms{index}_ids",
                    "values": f"terms{index}_values",
                    "size": size_of(vectorizer),
                }
                for index, (name, vectorizer) in enumerate(self.model.text_parts())
            ],
        }

    def write_steps(self, folder: Path) -> None:
        if self.model.text_parts():
            vectorizers = [vectorizer for _, vectorizer in self.model.text_parts()]
            write(folder / "pre" / FILE, self.metadata()["texts"], vectorizers)

    def export(self, target: Path) -> None:
        metadata = self.metadata()
        shape = Shape(
            metadata["columns"],
            metadata["number"],
            metadata["labels"],
            self.model.order,
            metadata["texts"],
        )
        remedy = "export it to ONNX yourself, and convert that with --task tensors"
        with no_traceback(ExportFailed, f"{self.request.source} has no graph", remedy):
            onnx.save(public_graph(self.model.graph(), shape), target)
            session = onnx_runner(target)
        if metadata["texts"]:
            return  # its terms come from the pipeline's step
        failure = f"{self.request.source}: its graph fails on rows that the library predicts"
        names = ["label", "score"] if metadata["labels"] else ["value"]
        remedy = "train with another estimator or step instead"
        with no_traceback(ExportFailed, failure, remedy):
            trial = self.rows.rows(slice(0, TRIAL_ROWS))
            outputs = session.run(names, column_feeds(trial, metadata))
        if any(len(output) != len(trial) for output in outputs):
            raise ExportFailed(
                f"{self.request.source} has a graph that does not give one answer for each row: "
                f"{remedy}"
            )

    @cached_property
    def rows(self) -> Table:
        """The samples, or rows generated from the model; then rows that exercise its parts, and
        rows where its prediction jumps. Constructed rows that the library refuses are left out."""
        rng = np.random.default_rng(SEED)
        with self._exploring("no rows could be generated"):
            rows = self.samples or self._generated_rows(rng)
            constructed = constructed_rows(self.explored, rows, rng)
            constructed = constructed.join(boundary_rows(self.explored, rows, rng))
            return rows.join(partition_by_answer(self.model, constructed)[0])

    @contextmanager
    def _exploring(self, failure: str) -> Iterator[None]:
        """While the library predicts made-up rows: one thread, no warnings, and SourceRefused with
        ``failure`` for whatever it raises."""
        remedy = "give real rows with --samples rows.csv"
        with (
            threadpool_limits(1),
            warnings.catch_warnings(),
            no_traceback(SourceRefused, f"{self.request.source}: {failure}", remedy),
        ):
            warnings.simplefilter("ignore")
            yield

    def _generated_rows(self, rng: np.random.Generator) -> Table:
        generated = generated_rows(self.explored, rng)
        usable, refused = partition_by_answer(self.model, generated)
        if len(usable) < len(generated) / 2:
            usable = usable.join(
                partition_by_answer(self.model, positive_rows(self.explored, refused))[0]
            )
        if len(usable):
            return usable
        reason = "it predicts NaN"
        try:
            self.model.scores(refused.rows(slice(0, 1)))
        except Exception as error:  # the library can raise anything for a row
            reason = " ".join(str(error).split())[:200]
        raise SourceRefused(
            f"{self.request.source} refuses every generated row ({reason}): give real ones with "
            "--samples rows.csv"
        )

    def ask(self, folder: Path, report: Progress) -> dict[str, np.ndarray]:
        for remark in self.remarks:
            report(f"{self.request.name}: {remark}")
        rows, sample_count = self.rows, len(self.samples or ())
        report(
            f"{self.request.name}: {sample_count or 'no'} sample rows, {len(rows) - sample_count} "
            "generated from the model's own thresholds and categories"
        )
        predicted = ask_library(Path(self.request.source), self.request.options, rows, folder)
        return {**rows.arrays(), **predicted, **self._together(folder)}

    def _together(self, folder: Path) -> dict[str, np.ndarray]:
        """The rows for the splits of trees, and the library's answers, under prefixed names."""
        rows = self.split_rows.rows
        if not len(rows):
            return {}
        predictions = ask_together(Path(self.request.source), self.request.options, rows, folder)
        return {
            f"{TOGETHER}{name}": array for name, array in {**rows.arrays(), **predictions}.items()
        }

    @cached_property
    def split_rows(self) -> SplitRows:
        with self._exploring("no rows could be found for the splits of its trees"):
            return split_rows(self.explored, self.rows, np.random.default_rng(SEED + 1))

    def feeds(self, reference: Reference) -> Iterator[Feed]:
        graph = TableGraph(reference.folder / "model.onnx", reference)
        table = reference_table(reference)
        for row in range(len(table)):
            yield graph.feed(table.rows(slice(row, row + 1)))

    def prove_graph(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> list[Check]:
        return graph_checks(
            TableGraph(engine, reference, runner), reference_table(reference), reference
        )

    def prove_served(self, address: str, reference: Reference) -> list[Check]:
        return served_checks(address, reference)

    def exercised(self, reference: Reference) -> list[str]:
        table = reference_table(reference)
        notes = exercised(self.explored, table, reference.outputs["answers"])
        splits = [self.split_rows.note] if self.split_rows.note else []
        return [*super().exercised(reference), *self.remarks, *notes, *splits]

    def golden(self, reference: Reference) -> Golden:
        """The first row without a missing value, which every client can express in JSON."""
        table, predictions = reference_table(reference), reference.outputs["answers"]
        row = next((index for index in range(len(table)) if _is_complete(table, index)), 0)
        magnitude = max(1.0, float(np.abs(predictions[row]).max()))
        return Golden(
            request=request_of(table, row),
            expect=_expected_response(predictions[row], reference.metadata["labels"]),
            tolerance=10 * reference.tolerance.difference * magnitude,
        )

    def card(self) -> dict[str, Any]:
        card = {**super().card(), "library": self.model.library}
        return card | ({"remarks": self.remarks} if self.remarks else {})

    @cached_property
    def remarks(self) -> list[str]:
        """What a user should know: another version, or a predict() that is not the likeliest
        label."""
        if not self.classifies:
            return list(self.model.remarks)
        with threadpool_limits(1):
            scores, predicted = self.model.scores(self.rows), self.model.decide(self.rows)
        chosen = scores[np.arange(len(scores)), predicted]
        count = int((scores.max(axis=1) - chosen > DECISION_GAP).sum())
        if not count:
            return list(self.model.remarks)
        remark = (
            "the library's own predict() chose another label than the likeliest in "
            f"{count} of {len(scores)} rows"
        )
        return [*self.model.remarks, remark]


class TabularClassification(TabularTask):
    name: ClassVar[str] = "tabular-classification"
    classifies: ClassVar[bool] = True


class TabularRegression(TabularTask):
    name: ClassVar[str] = "tabular-regression"
    classifies: ClassVar[bool] = False


def request_of(table: Table, row: int) -> dict[str, Any]:
    """A row as a client sends it; None for a missing value, since JSON has no NaN."""
    return {name: _json_value(values[row]) for name, values in table.columns.items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, str):
        return None if value == MISSING else str(value)
    return None if np.isnan(value) else float(value)


def _is_complete(table: Table, row: int) -> bool:
    return None not in request_of(table, row).values()


def _expected_response(scores: np.ndarray, labels: list[str]) -> dict[str, list[Any]]:
    if not labels:
        return {"value": [float(scores[0])]}
    likeliest = int(scores.argmax())
    return {"label": [labels[likeliest]], "score": [float(scores[likeliest])]}


def _require_task(task: TabularTask, model: TabularModel) -> None:
    if task.classifies == bool(model.labels):
        return
    estimator, task_kind = (
        ("classifier", "classification") if model.labels else ("regressor", "regression")
    )
    raise SourceRefused(
        f"{task.request.source} holds a {estimator}: use --task tabular-{task_kind} instead of "
        f"{task.name}"
    )
