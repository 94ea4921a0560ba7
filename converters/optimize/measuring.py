"""Every form of one model: written, compared with the original, timed in turn, within a budget."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from converters.cache import Say, cache_root, content_key, conversion, files_sha256
from converters.conversion import (
    ANSWERS,
    GRAPH,
    ConversionOptions,
    Converted,
    ask_original,
    convert,
    reference_in,
    source_sha256,
)
from converters.errors import ConversionError
from converters.optimize.accuracy import Accuracy, compare
from converters.optimize.budget import COMPARING, Budget, OutOfTime
from converters.optimize.candidates import ORIGINAL, Candidate, candidates
from converters.optimize.clocks import ROWS, write_feeds
from converters.optimize.kept import Kept
from converters.optimize.pareto import Row
from converters.optimize.pruning import Pruning, write_pruned
from converters.optimize.timing import Form, Timer, Visits
from converters.precision import write_precision
from converters.task import ConversionRequest, Reference, Task

LEFT_OUT = "not measured, and so not in the choice: the time budget ended first (--budget)"
# What is left of the budget must be as much for many samples to be asked.
MANY_S = 200.0


@dataclass(frozen=True)
class Subject:
    """One model. ``open_task`` opens it on an order; ``kind`` is the task's class, written
    "module:name", for the process that runs the original."""

    request: ConversionRequest
    open_task: Callable[[ConversionRequest], Task]
    kind: str
    precisions: tuple[str, ...] = ()
    pruning: Pruning | None = None


@dataclass(frozen=True)
class Measured:
    """The original's row comes first if it has a framework of its own; ``samples`` is how many the
    accuracy was measured on, ``against`` what the ratios are of."""

    rows: tuple[Row, ...]
    samples: int
    task: str
    against: str


@dataclass
class Bench:
    """A converted model, what the original answered to many samples, and what is known so far."""

    subject: Subject
    converted: Converted
    many: Reference
    kept: Kept
    say: Say
    engines: dict[tuple[str, bool], Path] = field(default_factory=dict)
    accuracies: dict[tuple[str, bool], Accuracy] = field(default_factory=dict)
    reasons: dict[tuple[str, bool], str] = field(default_factory=dict)
    _longest_s: float = 0.0  # what writing and comparing one form took at most

    @property
    def task(self) -> Task:
        return self.converted.task

    @property
    def samples(self) -> int:
        """How many the accuracy was measured on."""
        return next((each.samples for each in self.accuracies.values()), 0)

    def compare_all(self, forms: Sequence[Candidate], budget: Budget) -> None:
        """Write each graph and compare its answers, in this order, until the budget has no more."""
        for form in forms:
            if form.graph in self.engines or form.graph in self.reasons:
                continue
            if not budget.has_room(self._longest_s, COMPARING):
                self.reasons[form.graph] = LEFT_OUT
                continue
            started = budget.spent
            try:
                with budget.enforced():
                    self._write(form)
                    self._compare(form, budget)
                self._longest_s = max(self._longest_s, budget.spent - started)
            except OutOfTime:
                self.reasons[form.graph] = LEFT_OUT
            except ConversionError as error:
                self.reasons[form.graph] = " ".join(str(error).split())[:300]

    def _write(self, form: Candidate) -> None:
        source, reference = self.converted.engine, self.converted.reference
        pruning = _pruning_key(self.subject.pruning) if form.pruned else ""
        parts = [source_sha256(self.task), files_sha256([source]), form.precision, pruning]
        settings = json.dumps(["candidate", *parts])

        def build(folder: Path) -> None:
            self.say(f"writing {form.name}")
            feeds = lambda: self.task.calibration(reference)  # noqa: E731 - it has no name to give
            write_precision(form.precision, self._graph(form, folder), folder / GRAPH, feeds)

        self.engines[form.graph] = (
            conversion(reference.name, content_key(settings), GRAPH, build) / GRAPH
        )

    def _graph(self, form: Candidate, folder: Path) -> Path:
        """What the form is written from: the proved graph, pruned first where that is wished."""
        if not (form.pruned and self.subject.pruning):
            return self.converted.engine
        pruned = folder / "pruned.onnx"
        write_pruned(self.converted.engine, pruned, self.subject.pruning)
        return pruned

    def _compare(self, form: Candidate, budget: Budget) -> None:
        engine, reference = self.engines[form.graph], self.converted.reference
        answers = [files_sha256([each.folder / ANSWERS]) for each in (reference, self.many)]
        key = self.kept.key("accuracy", self.task.name, form.graph, files_sha256([engine]), answers)
        found = self.kept.get(key)
        if found is None:
            if not budget.allows(COMPARING):
                raise ConversionError(LEFT_OUT)
            self.say(f"comparing {form.name} with the original")
            found = compare(self.task, engine, form.precision, reference, self.many).to_dict()
            self.kept.put(key, found)
        self.accuracies[form.graph] = Accuracy.from_dict(found)

    def row(self, form: Candidate, visits: Visits) -> Row:
        """All that is known of this form."""
        if form.precision == ORIGINAL:
            return Row(form, None, visits.times(), visits.ratios(), visits.passes,
                       memory_mb=visits.memory_bytes / 1e6, why_not=visits.why_not)  # fmt: skip
        engine = self.engines.get(form.graph)
        untimed = "" if visits.passes else LEFT_OUT
        return Row(
            candidate=form,
            accuracy=self.accuracies.get(form.graph),
            times=visits.times(),
            ratios=visits.ratios(),
            passes=visits.passes,
            size_mb=engine.stat().st_size / 1e6 if engine else 0.0,
            memory_mb=visits.memory_bytes / 1e6,
            why_not=self.reasons.get(form.graph) or visits.why_not or untimed,
            engine=engine,
        )

    def timed(self, forms: Sequence[Candidate], folder: Path) -> list[Form]:
        """What can be timed, with the batches written into ``folder``."""
        reference = self.converted.reference
        feeds = write_feeds(
            ((rows, self.task.timed_feed(reference, rows)) for rows in ROWS), folder
        )
        content = [files_sha256([Path(path)]) for path in feeds.values()]
        request, found = self.task.request, []
        if self.task.eager() is not None:
            samples = str(request.samples) if request.samples else None
            asked = {"name": request.name, "source": request.source, "samples": samples,
                     "options": dict(request.options)}  # fmt: skip
            spec = {"task": self.subject.kind, **asked, "feeds": feeds}
            original = [ORIGINAL, source_sha256(self.task), *content]
            found.append(Form(Candidate(ORIGINAL), spec, original))
        for form in forms:
            if form.graph in self.accuracies:
                engine = self.engines[form.graph]
                spec = {"engine": str(engine), "level": form.level, "feeds": feeds}
                found.append(Form(form, spec, [files_sha256([engine]), form.level, *content]))
        return found


def measure(subject: Subject, kept: Kept, budget: Budget, say: Say) -> Measured:
    """Whatever the budget allows; ConversionError when the model cannot be converted at all."""
    task = subject.open_task(subject.request)
    precisions = _known(task, subject.precisions)
    name = subject.request.name
    try:
        with budget.enforced(conversion=True):
            converted = convert(task, ConversionOptions("fp32"), say)
    except OutOfTime:
        raise ConversionError(
            f"{name}: the budget ended after {budget.spent:.0f} s, before {name} was converted: "
            f"nothing was measured. Give a larger --budget, or run tidegate convert {name} first, "
            "whose conversion is kept and found again"
        ) from None
    many = _asked_more(subject, converted, say, budget)
    bench = Bench(subject, converted, many, kept, say)
    forms = candidates(precisions, subject.pruning is not None)
    bench.compare_all(forms, budget)
    with tempfile.TemporaryDirectory(prefix="tidegate-optimize-") as work:
        timed = bench.timed(forms, Path(work))
        if not timed:
            rows = tuple(bench.row(form, Visits()) for form in forms)
            return Measured(rows, bench.samples, task.name, forms[0].name)
        visits = Timer(timed, kept, Path(work), say).run(budget)
    first = timed[0].candidate
    shown = [first] if first.precision == ORIGINAL else []
    rows = tuple(bench.row(form, visits.get(form, Visits())) for form in [*shown, *forms])
    against = "torch eager" if shown else first.name
    return Measured(rows, bench.samples, task.name, against)


def _asked_more(subject: Subject, converted: Converted, say: Say, budget: Budget) -> Reference:
    """The case with many samples, or the proof's own where the budget has no time for them."""
    if not budget.has_room(budget.seconds / 2):
        say(f"{subject.request.name}: converting took {budget.spent:.0f} s of the budget")
        return converted.reference
    try:
        with budget.enforced():
            return many_samples(subject, converted, say, budget)
    except OutOfTime:
        return converted.reference


def many_samples(
    subject: Subject, converted: Converted, say: Say, budget: Budget | None = None
) -> Reference:
    """The original's answers to more samples than the proof has, where the task has them and the
    ``budget`` the time to ask; from the cache if it was asked before."""
    with tempfile.TemporaryDirectory(prefix="tidegate-samples-") as work:
        file = converted.task.more_samples(Path(work) / "samples.txt")
        if file is None:
            return converted.reference
        request = subject.request
        task = subject.open_task(
            ConversionRequest(request.name, request.source, file, request.options)
        )
        key = content_key(json.dumps(["many", source_sha256(task)]))
        is_there = (cache_root() / "conversions" / key / ANSWERS).is_file()
        if budget and not is_there and budget.left < MANY_S:
            say(f"{request.name}: measured on the proof's samples: 1,500 more would take too long")
            return converted.reference
        build = lambda folder: ask_original(task, folder, say)  # noqa: E731 - one line says it
        folder = conversion(request.name, key, ANSWERS, build)
    return reference_in(folder, request.name, converted.task.name, "fp32")


def _pruning_key(pruning: Pruning | None) -> str:
    """The shares, and the code that finds and cuts, which a conversion's key does not have."""
    code = sorted(Path(__file__).parent.glob("prun*.py"))
    return files_sha256(code, str(pruning))


def _known(task: Task, wished: Sequence[str]) -> tuple[str, ...]:
    """The wished precisions, all if none is wished; fp32 always: the others come from it."""
    wrong = [each for each in wished if each not in task.precisions]
    if wrong:
        raise ConversionError(
            f"{task.name} has no precision {wrong[0]!r}: choose from {', '.join(task.precisions)}"
        )
    chosen = wished or task.precisions
    return tuple(dict.fromkeys(["fp32", *chosen]))
