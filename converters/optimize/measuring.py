"""The candidates of one model: written, compared with the original and timed within a budget."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.cache import Progress, cached, content_key, conversion, files_sha256
from converters.conversion import (
    ANSWERS,
    ConversionOptions,
    Converted,
    ask_original,
    convert,
    reference_in,
    source_sha256,
)
from converters.errors import ConversionError
from converters.optimize.accuracy import Accuracy, compare, screen
from converters.optimize.benchmark_process import ROWS, write_feeds
from converters.optimize.budget import Budget, OutOfTime
from converters.optimize.candidates import ORIGINAL, Candidate, candidates
from converters.optimize.measurement_cache import MeasurementCache
from converters.optimize.pareto import HEADLINE, Allowed, Row, next_to_prove
from converters.optimize.timing import TimedCandidate, Timer, Timings
from converters.precisions.write import write_precision
from converters.proof.reference import Reference
from converters.task import ConversionRequest, Task
from modelspec.layout import ENGINE_FILE

LEFT_OUT = "not measured, and so not considered: the time budget ended first (--budget)"
NOT_PROVED = "timed but not proved, and so not considered: the time budget ended first (--budget)"
# Candidates are compared on this many samples before they are timed, and proved afterwards.
FEW = 24
# With this many 8-bit candidates there is something to choose from.
ENOUGH = 2
# The share of the budget by which candidates are written and screened; the rest is for timing and
# proving them. The second holds until there are ENOUGH.
SCREENING, SCREENING_LONGER = 0.4, 0.7
# A proof that has not been timed yet may need this share of the budget.
PROOF_SHARE = 0.5
# So many rounds at the cell that decides show who is fast: in one, a neighbour's burst does.
FIRST_ROUNDS = 3
# The share by which the passes after the first pause, so that what they show to be faster, and the
# other candidates, can still be proved.
PASSES_SHARE = 0.7
# The original answers the larger set of samples only if this much of the budget is left.
MANY_S = 200.0


@dataclass(frozen=True)
class Subject:
    """One model. ``open_task`` opens a task on a request; ``kind`` is the task's class, written
    "module:name", for the process that runs the original. ``opener``, written likewise, opens a
    graph (path, session options) as it will be served. What is ``allowed`` to be picked is proved
    first."""

    request: ConversionRequest
    open_task: Callable[[ConversionRequest], Task]
    kind: str
    opener: str
    precisions: tuple[str, ...] = ()
    allowed: Allowed = field(default_factory=Allowed)


@dataclass(frozen=True)
class Measured:
    """The original's row comes first if it has a framework of its own; ``samples`` is the number of
    samples behind the accuracy, ``against`` names what the ratios are relative to."""

    rows: tuple[Row, ...]
    samples: int
    task: str
    against: str


@dataclass
class Bench:
    """A converted model, the original's answers to many samples, and the results so far."""

    subject: Subject
    converted: Converted
    many: Reference
    cache: MeasurementCache
    report: Progress
    engines: dict[str, Path] = field(default_factory=dict)
    accuracies: dict[str, Accuracy] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    _screening_s: float = 0.0  # the longest time to write and screen one candidate
    _proving_s: float = 0.0  # the longest time to prove one

    @property
    def task(self) -> Task:
        return self.converted.task

    @property
    def samples(self) -> int:
        """The number of samples behind the accuracy."""
        return max((accuracy.samples for accuracy in self.accuracies.values()), default=0)

    def screen_all(self, candidates: Sequence[Candidate], budget: Budget) -> None:
        """Write each graph and compare a few of its answers, in this order, within this part's
        share of the budget; while there is too little to choose from, within more of it."""
        started = budget.spent
        for candidate in candidates:
            if candidate.precision in self.accuracies or candidate.precision in self.reasons:
                continue
            eight_bit = [name for name in self.accuracies if name.startswith("int8")]
            enough = len(eight_bit) >= ENOUGH
            if not enough and not budget.has_room(self._screening_s, SCREENING):
                budget.extend()
            # Of what the conversion has left.
            part = SCREENING if enough else SCREENING_LONGER
            share = (started + part * (budget.seconds - started)) / budget.seconds
            # Some are written much faster than others: too few to choose from is worth a try.
            if not budget.has_room(self._screening_s if enough else 0.0, share):
                self.reasons[candidate.precision] = LEFT_OUT
                continue
            took_s = self._within(budget, candidate, self._screen, share)
            self._screening_s = max(self._screening_s, took_s)

    def prove(self, candidate: Candidate, budget: Budget) -> None:
        """The candidate's own proof, and its closeness over many samples; without room for them it
        is left out. With too few proved to choose from, the budget is extended first."""
        proved = [name for name, accuracy in self.accuracies.items() if accuracy.proved]
        if sum(name.startswith("int8") for name in proved) < ENOUGH and not budget.has_room(
            max(self._proving_s, PROOF_SHARE * budget.seconds)
        ):
            budget.extend()
        if budget.has_room(self._proving_s):
            self._proving_s = max(self._proving_s, self._within(budget, candidate, self._prove))
        else:
            self.reasons[candidate.precision] = NOT_PROVED

    def _within(
        self,
        budget: Budget,
        candidate: Candidate,
        step: Callable[[Candidate], None],
        share: float = 1.0,
    ) -> float:
        """How many seconds the step took; its failure is the reason to leave the candidate out."""
        started = budget.spent
        try:
            with budget.enforced(share=share):
                step(candidate)
        except OutOfTime:
            is_timed = candidate.precision in self.accuracies
            self.reasons[candidate.precision] = NOT_PROVED if is_timed else LEFT_OUT
        except ConversionError as error:
            self.reasons[candidate.precision] = " ".join(str(error).split())[:300]
        return budget.spent - started

    def _screen(self, candidate: Candidate) -> None:
        self._write(candidate)
        engine, reference = self.engines[candidate.precision], self.converted.reference
        proved = self.cache.get(self._accuracy_key(candidate))
        if proved is not None:
            self.accuracies[candidate.precision] = Accuracy.from_dict(proved)
            return

        def measure() -> dict[str, Any]:
            self.report(f"comparing {candidate.name} with the original, on a few samples")
            return screen(self.task, engine, self.task.few(reference, FEW)).to_dict()

        key = self.cache.key("screened", FEW, self._accuracy_key(candidate))
        self.accuracies[candidate.precision] = Accuracy.from_dict(self.cache.once(key, measure))

    def _prove(self, candidate: Candidate) -> None:
        engine, reference = self.engines[candidate.precision], self.converted.reference
        # The conversion has proved FP32, and refused it if it failed.
        is_proved = candidate.precision == "fp32"
        checks = self.converted.record.proofs[0].checks if is_proved else ()

        def measure() -> dict[str, Any]:
            self.report(f"proving {candidate.name} against the original")
            precision = candidate.precision
            return compare(self.task, engine, precision, reference, self.many, checks).to_dict()

        fields = self.cache.once(self._accuracy_key(candidate), measure)
        self.accuracies[candidate.precision] = Accuracy.from_dict(fields)

    def _accuracy_key(self, candidate: Candidate) -> str:
        references = (self.converted.reference, self.many)
        outputs = [files_sha256([reference.folder / ANSWERS]) for reference in references]
        engine = files_sha256([self.engines[candidate.precision]])
        return self.cache.key("accuracy", self.task.name, candidate.precision, engine, outputs)

    def _write(self, candidate: Candidate) -> None:
        fp32, reference = self.converted.engine, self.converted.reference
        parts = [source_sha256(self.task), files_sha256([fp32]), candidate.precision]
        settings = json.dumps(["candidate", *parts])

        def build(folder: Path) -> None:
            self.report(f"writing {candidate.name}")
            write_precision(
                candidate.precision,
                fp32,
                folder / ENGINE_FILE,
                lambda: self.task.calibration(reference),
            )

        key = content_key(settings, write_precision.__module__)
        engine = conversion(reference.name, key, build) / ENGINE_FILE
        self.engines[candidate.precision] = engine

    def row(self, candidate: Candidate, timings: Timings) -> Row:
        """Everything that is known about this candidate."""
        if candidate.precision == ORIGINAL:
            return Row(candidate, None, timings.times(), timings.ratios(), timings.passes,
                       memory_mb=timings.memory_bytes / 1e6, reason=timings.reason)  # fmt: skip
        engine = self.engines.get(candidate.precision)
        accuracy = self.accuracies.get(candidate.precision)
        untimed = "" if timings.passes else LEFT_OUT
        unproved = "" if accuracy is None or accuracy.proved else NOT_PROVED
        return Row(
            candidate=candidate,
            accuracy=accuracy,
            times=timings.times(),
            ratios=timings.ratios(),
            passes=timings.passes,
            size_mb=engine.stat().st_size / 1e6 if engine else 0.0,
            memory_mb=timings.memory_bytes / 1e6,
            reason=self.reasons.get(candidate.precision) or timings.reason or untimed or unproved,
            engine=engine,
        )

    def timed(self, candidates: Sequence[Candidate], folder: Path) -> list[TimedCandidate]:
        """What can be timed, the original first; the batches are written into ``folder``."""
        reference = self.converted.reference
        feeds = write_feeds(
            ((rows, self.task.timed_feed(reference, rows)) for rows in ROWS), folder
        )
        batches = [files_sha256([Path(path)]) for path in feeds.values()]
        request = self.task.request
        timed: list[TimedCandidate] = []
        if self.task.eager() is not None:
            spec = {
                "task": self.subject.kind,
                "name": request.name,
                "source": request.source,
                "samples": str(request.samples) if request.samples else None,
                "options": dict(request.options),
                "feeds": feeds,
            }
            content = [ORIGINAL, source_sha256(self.task), *batches]
            timed.append(TimedCandidate(Candidate(ORIGINAL), spec, content))
        for candidate in candidates:
            if candidate.precision in self.accuracies:
                engine = self.engines[candidate.precision]
                opener = self.subject.opener
                spec = {
                    "engine": str(engine),
                    "level": candidate.level,
                    "feeds": feeds,
                    "opener": opener,
                }
                content = [files_sha256([engine]), candidate.level, opener, *batches]
                timed.append(TimedCandidate(candidate, spec, content))
        return timed


def measure(
    subject: Subject, cache: MeasurementCache, budget: Budget, report: Progress
) -> Measured:
    """Measure as much as the budget allows; ConversionError if the model cannot be converted."""
    task = subject.open_task(subject.request)
    precisions = _valid_precisions(task, subject.precisions)
    name = subject.request.name
    try:
        with budget.enforced(conversion=True):
            converted = convert(task, ConversionOptions("fp32"), report)
    except OutOfTime:
        raise ConversionError(
            f"{name}: the budget ended after {budget.spent:.0f} s, before {name} was converted: "
            f"nothing was measured. Give a larger --budget, or run tidegate convert {name} first, "
            "whose conversion is cached and reused"
        ) from None
    many = _larger_reference(subject, converted, report, budget)
    bench = Bench(subject, converted, many, cache, report)
    choices = candidates(precisions)
    bench.screen_all(choices, budget)
    with tempfile.TemporaryDirectory(prefix="tidegate-optimize-") as work:
        timed = bench.timed(choices, Path(work))
        if not timed:
            rows = tuple(bench.row(candidate, Timings()) for candidate in choices)
            return Measured(rows, bench.samples, task.name, choices[0].name)
        with Timer(timed, cache, Path(work), report) as timer:
            timings = time_and_prove(bench, timer, choices, subject.allowed, budget)
    first = timed[0].candidate
    original = [first] if first.precision == ORIGINAL else []
    rows = tuple(
        bench.row(candidate, timings.get(candidate, Timings()))
        for candidate in [*original, *choices]
    )
    against = "torch eager" if original else first.name
    return Measured(rows, bench.samples, task.name, against)


def time_and_prove(
    bench: Bench,
    timer: Timer,
    choices: Sequence[Candidate],
    allowed: Allowed,
    budget: Budget,
) -> Mapping[Candidate, Timings]:
    """The times of the screened candidates, and the proofs of those that could be picked.

    A few rounds at one cell show who is fast. The fastest are then proved, one by one, until no
    other could be picked; graph levels, more passes and the proofs of all others follow with what
    is left."""
    graphs = [candidate for candidate in choices if candidate.level == "all"]

    def prove_contenders() -> None:
        while True:
            rows = [bench.row(candidate, timer.timings[candidate]) for candidate in timed]
            row = next_to_prove([row for row in rows if row.reason in ("", NOT_PROVED)], allowed)
            if row is None or bench.reasons.get(row.candidate.precision):
                return
            bench.prove(row.candidate, budget)

    timed = [candidate for candidate in graphs if candidate in timer.timings]
    fp32 = Candidate("fp32")
    if fp32 in timed:
        bench.prove(fp32, budget)
    contenders = [Candidate(ORIGINAL), *timed]
    timer.run(budget, FIRST_ROUNDS, cells=(HEADLINE,), only=contenders, share=PASSES_SHARE)
    prove_contenders()
    timer.run(budget, share=PASSES_SHARE)
    prove_contenders()
    for candidate in timed:
        precision = candidate.precision
        if precision not in bench.reasons and not bench.accuracies[precision].proved:
            bench.prove(candidate, budget)
    return timer.run(budget)


def _larger_reference(
    subject: Subject, converted: Converted, report: Progress, budget: Budget
) -> Reference:
    """The reference with many samples, or the proof's own if the budget leaves no time."""
    if not budget.has_room(budget.seconds / 2):
        report(f"{subject.request.name}: converting took {budget.spent:.0f} s of the budget")
        return converted.reference
    try:
        with budget.enforced():
            return many_samples(subject, converted, report, budget)
    except OutOfTime:
        return converted.reference


def many_samples(
    subject: Subject, converted: Converted, report: Progress, budget: Budget | None = None
) -> Reference:
    """The original's answers to more samples than the proof has, if the task has more and the
    ``budget`` enough time; from the cache if they were computed before."""
    with tempfile.TemporaryDirectory(prefix="tidegate-samples-") as work:
        file = converted.task.more_samples(Path(work) / "samples.txt")
        if file is None:
            return converted.reference
        request = subject.request
        task = subject.open_task(
            ConversionRequest(request.name, request.source, file, request.options)
        )
        settings = json.dumps(["many", source_sha256(task)])
        key = content_key(settings, ask_original.__module__, type(task).__module__)
        if budget and budget.left < MANY_S and cached(key) is None:
            report(
                f"{request.name}: measuring on the proof's samples: 1,500 more would take too long"
            )
            return converted.reference
        build = lambda folder: ask_original(task, folder, report)  # noqa: E731 - a name would add nothing
        folder = conversion(request.name, key, build)
    return reference_in(folder, request.name, converted.task, "fp32")


def _valid_precisions(task: Task, precisions: Sequence[str]) -> tuple[str, ...]:
    """The requested precisions, all if none is requested; always fp32, which the others come from.
    ConversionError for one that the task does not have."""
    offered = task.offered()
    invalid = [precision for precision in precisions if precision not in offered]
    if invalid:
        raise ConversionError(
            f"{task.name} has no precision {invalid[0]!r}: choose from {', '.join(offered)}"
        )
    return tuple(dict.fromkeys(["fp32", *(precisions or offered)]))
