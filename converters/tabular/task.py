"""The tasks ``tabular-classification`` and ``tabular-regression``: a row of named columns -> an
answer."""

import warnings
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from threadpoolctl import threadpool_limits

from converters.cache import Say, files_sha256
from converters.errors import ExportFailed, SourceRefused, no_traceback
from converters.proof import Check
from converters.runner import OpenRunner, onnx_runner
from converters.sources.tabular_model import TabularModel, open_model
from converters.tabular.constructed import constructed_rows, exercised
from converters.tabular.graph import Shape, public_graph, tensor_name
from converters.tabular.oracle import ask_library
from converters.tabular.proof import TableGraph, case_table, column_feeds, graph_checks
from converters.tabular.rows import answered, boundary_rows, explore, generated_rows, positive_rows
from converters.tabular.served import served_checks
from converters.tabular.table import MISSING, Table, read_csv
from converters.tabular.vectorizers import FILE, size_of, write
from converters.task import ConversionRequest, Feed, Reference, Task
from modelspec.golden import Golden

SEED = 20240229
TRIED = 400  # rows that a new graph is tried on, before the original is asked
# A tie, whichever way it is rounded, is no disagreement.
DECISION_GAP = 1e-6
PACKAGES = ("scikit-learn", "skl2onnx", "skops")


class TabularTask(Task):
    """Answers: the rows (``Table.arrays``) and what ``ask_library`` returns."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    options: ClassVar[tuple[str, ...]] = ("missing", "iteration_range")
    tests_graphs: ClassVar[bool] = False
    classifies: ClassVar[bool]

    def __init__(self, request: ConversionRequest) -> None:
        super().__init__(request)
        self.model: TabularModel = open_model(Path(request.source), request.options)
        _require_task(self, self.model)
        # Many small questions: threads only wait for one another.
        refused = f"{request.source} does not answer made-up rows"
        with (
            threadpool_limits(1),
            warnings.catch_warnings(),
            no_traceback(SourceRefused, refused, "try it in Python with rows of its own"),
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
            {**c.metadata(), "tensor": tensor_name(c.name), "direct": self.model.direct(c)}
            for c in self.explored.columns
        ]
        return {
            "columns": [
                {**each, "categories": list(each["categories"]), "values": list(each["values"])}
                for each in columns
            ],
            "number": self.model.number,
            "labels": list(self.model.labels),
            "texts": [
                {
                    "tensor": tensor_name(name),
                    "ids": f"terms{place}_ids",
                    "values": f"terms{place}_values",
                    "size": size_of(vectorizer),
                }
                for place, (name, vectorizer) in enumerate(self.model.text_parts())
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
        todo = "export it to ONNX yourself, and convert that with --task tensors"
        with no_traceback(ExportFailed, f"{self.request.source} has no graph", todo):
            onnx.save(public_graph(self.model.graph(), shape), target)
            session = onnx_runner(target)
        if metadata["texts"]:
            return  # its terms come from the pipeline's step
        failed = f"{self.request.source}: its graph fails on rows that the library answers"
        outputs = ["label", "score"] if metadata["labels"] else ["value"]
        todo = "train with another estimator or step in its place"
        with no_traceback(ExportFailed, failed, todo):
            session.run(outputs, column_feeds(self.rows.rows(slice(0, TRIED)), metadata))

    @cached_property
    def rows(self) -> Table:
        """The samples, or rows generated from what the model itself holds; then rows made to touch
        what it is made of, and rows at the places where its answer jumps. Those of them that the
        library refuses are left out."""
        generator = np.random.default_rng(SEED)
        todo = "give real rows with --samples rows.csv"
        with (
            threadpool_limits(1),
            warnings.catch_warnings(),
            no_traceback(SourceRefused, f"{self.request.source}: no rows could be made", todo),
        ):
            warnings.simplefilter("ignore")
            rows = self.samples or self._drawn(generator)
            made = constructed_rows(self.explored, rows, generator)
            made = made.join(boundary_rows(self.explored, rows, generator))
            return rows.join(answered(self.model, made)[0])

    def _drawn(self, generator: np.random.Generator) -> Table:
        drawn = generated_rows(self.explored, generator)
        kept, refused = answered(self.model, drawn)
        if len(kept) < len(drawn) / 2:
            kept = kept.join(answered(self.model, positive_rows(self.explored, refused))[0])
        if len(kept):
            return kept
        reason = "it answers with NaN"
        try:
            self.model.answer(refused.rows(slice(0, 1)))
        except Exception as error:  # whatever the library raises of a row
            reason = " ".join(str(error).split())[:200]
        raise SourceRefused(
            f"{self.request.source} refuses every row that was made up ({reason}): give real ones "
            "with --samples rows.csv"
        )

    def ask(self, folder: Path, say: Say) -> dict[str, np.ndarray]:
        for remark in self.remarks:
            say(f"{self.request.name}: {remark}")
        rows, given = self.rows, len(self.samples or ())
        say(
            f"{self.request.name}: {given or 'no'} rows of samples, {len(rows) - given} generated "
            "from the model's own thresholds and categories"
        )
        reported = ask_library(Path(self.request.source), self.request.options, rows, folder)
        return {**rows.arrays(), **reported}

    def feeds(self, reference: Reference) -> Iterator[Feed]:
        graph = TableGraph(reference.folder / "model.onnx", reference)
        table = case_table(reference)
        for row in range(len(table)):
            yield graph.feed(table.rows(slice(row, row + 1)))

    def prove_graph(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> list[Check]:
        return graph_checks(TableGraph(engine, reference, runner), case_table(reference), reference)

    def prove_served(self, address: str, reference: Reference) -> list[Check]:
        return served_checks(address, reference)

    def exercised(self, reference: Reference) -> list[str]:
        table = case_table(reference)
        found = exercised(self.explored, table, reference.answers["answers"])
        return [*super().exercised(reference), *self.remarks, *found]

    def golden(self, reference: Reference) -> Golden:
        """The first row without a missing value: what JSON can say in every client."""
        table, answers = case_table(reference), reference.answers["answers"]
        row = next((i for i in range(len(table)) if _is_whole(table, i)), 0)
        return Golden(
            request=request_of(table, row),
            expect=_expected(answers[row], reference.metadata["labels"]),
            tolerance=10
            * reference.tolerance.difference
            * max(1.0, float(np.abs(answers[row]).max())),
        )

    def card(self) -> dict[str, Any]:
        card = {**super().card(), "library": self.model.library}
        return card | ({"remarks": self.remarks} if self.remarks else {})

    @cached_property
    def remarks(self) -> list[str]:
        """What a user should hear: another version, or a predict() that is not the likeliest
        label."""
        if not self.classifies:
            return list(self.model.remarks)
        with threadpool_limits(1):
            answers, decided = self.model.answer(self.rows), self.model.decide(self.rows)
        chosen = answers[np.arange(len(answers)), decided]
        other = int((answers.max(axis=1) - chosen > DECISION_GAP).sum())
        said = f"predict() chose another label than the likeliest in {other} of {len(answers)} rows"
        return [*self.model.remarks, *([f"the library's own {said}"] if other else [])]


class TabularClassification(TabularTask):
    name: ClassVar[str] = "tabular-classification"
    classifies: ClassVar[bool] = True


class TabularRegression(TabularTask):
    name: ClassVar[str] = "tabular-regression"
    classifies: ClassVar[bool] = False


def request_of(table: Table, row: int) -> dict[str, Any]:
    """A row as a client writes it; None where a number is missing, which JSON cannot say."""
    return {name: _plain(values[row]) for name, values in table.columns.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return None if value == MISSING else str(value)
    return None if np.isnan(value) else float(value)


def _is_whole(table: Table, row: int) -> bool:
    return None not in request_of(table, row).values()


def _expected(answer: np.ndarray, labels: list[str]) -> dict[str, list[Any]]:
    if not labels:
        return {"value": [float(answer[0])]}
    best = int(answer.argmax())
    return {"label": [labels[best]], "score": [float(answer[best])]}


def _require_task(task: TabularTask, model: TabularModel) -> None:
    if task.classifies == bool(model.labels):
        return
    found, wanted = (
        ("classifier", "classification") if model.labels else ("regressor", "regression")
    )
    raise SourceRefused(
        f"{task.request.source} holds a {found}: give --task tabular-{wanted} "
        f"instead of {task.name}"
    )
