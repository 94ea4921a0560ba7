"""The times of the candidates, taken in turn: each cell of each pass visits all of them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

from converters.cache import Progress
from converters.errors import ConversionError
from converters.optimize.benchmark_process import CELLS, BenchmarkProcess, Cell, Times
from converters.optimize.budget import Budget, OutOfTime
from converters.optimize.candidates import Candidate
from converters.optimize.measurement_cache import MeasurementCache
from converters.optimize.pareto import HEADLINE
from modelspec.measuring import in_turn, median_ratio

PASSES = 5
# The cell that decides the pick comes first: a budget that ends early has at least that.
ORDER = tuple(sorted(CELLS, key=lambda cell: cell != HEADLINE))


@dataclass(frozen=True)
class TimedCandidate:
    """A candidate that can be timed: ``spec`` is the input of its process, ``content`` what
    determines its times (the graph's SHA-256, the runtime's level, the batches)."""

    candidate: Candidate
    spec: Mapping[str, Any]
    content: Sequence[str]


@dataclass
class Timings:
    """The cached measurements of a candidate: its memory, and for each pass and cell its times and
    those of the baseline, taken within the same seconds."""

    memory_bytes: int = 0
    reason: str = ""
    pairs: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def add(self, turn: int, cell: Cell, times: Times, baseline: Times) -> None:
        self.pairs[f"{turn}/{cell.name}"] = [asdict(times), asdict(baseline)]

    def has(self, turn: int, cell: Cell) -> bool:
        return f"{turn}/{cell.name}" in self.pairs or bool(self.reason)

    def times(self) -> dict[str, Times]:
        """The median over the passes, by the name of the cell."""
        medians = {}
        for cell, pairs in self._by_cell().items():
            columns = zip(*(times.values() for times, _ in pairs), strict=True)
            medians[cell] = Times(*(median(column) for column in columns))
        return medians

    def ratios(self) -> dict[str, float]:
        """Throughput relative to the baseline's, the median over the passes."""
        return {
            cell: median_ratio(
                [times["rows_s"] for times, _ in pairs],
                [baseline["rows_s"] for _, baseline in pairs],
            )
            for cell, pairs in self._by_cell().items()
        }

    @property
    def passes(self) -> int:
        """How many passes the headline cell has."""
        return len(self._by_cell().get(HEADLINE.name, []))

    def _by_cell(self) -> dict[str, list[list[dict[str, float]]]]:
        cells: dict[str, list[list[dict[str, float]]]] = {}
        for key, pair in self.pairs.items():
            cells.setdefault(key.partition("/")[2], []).append(pair)
        return cells


class Timer:
    """``candidates[0]`` is the baseline of the ratios. As a context manager it stops the processes
    that its runs have started."""

    def __init__(
        self,
        candidates: Sequence[TimedCandidate],
        cache: MeasurementCache,
        folder: Path,
        report: Progress,
    ) -> None:
        self.candidates, self.cache, self.folder, self.report = candidates, cache, folder, report
        self.timings = {timed.candidate: self._cached(timed) for timed in candidates}
        self._processes: dict[Candidate, BenchmarkProcess] = {}
        self._stack = ExitStack()
        self._longest_s = 0.0  # the longest time that a cell has taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(
        self,
        budget: Budget,
        passes: int = 0,
        cells: Sequence[Cell] = ORDER,
        only: Collection[Candidate] | None = None,
        share: float = 1.0,
    ) -> dict[Candidate, Timings]:
        """As many passes as this ``share`` of the budget allows, of all candidates or ``only``
        these; ConversionError if the baseline fails."""
        passes = passes or PASSES
        for turn, cell, missing in self._missing(passes, cells, only):
            if not budget.has_room(self._longest_s, share):
                break
            started, running = budget.spent, len(self._processes)
            if cell == ORDER[0]:
                self.report(f"pass {turn + 1} of {passes}: {len(missing)} candidates in turn")
            try:
                with budget.enforced():
                    self._visit(turn, cell, missing, budget)
            except OutOfTime:
                break
            # Starting the processes takes at least as long as the cell itself.
            took_s = (budget.spent - started) / (2 if len(self._processes) > running else 1)
            self._longest_s = max(self._longest_s, took_s)
        return self.timings

    def _missing(
        self, passes: int, cells: Sequence[Cell], only: Collection[Candidate] | None
    ) -> Iterator[tuple[int, Cell, list[TimedCandidate]]]:
        for turn in range(passes):
            for cell in cells:
                missing = [
                    timed
                    for timed in self.candidates
                    if (only is None or timed.candidate in only)
                    and not self.timings[timed.candidate].has(turn, cell)
                ]
                if missing:
                    yield turn, cell, in_turn(missing, turn)

    def _visit(
        self,
        turn: int,
        cell: Cell,
        missing: Sequence[TimedCandidate],
        budget: Budget,
    ) -> None:
        baseline = self._times(self.candidates[0], cell)
        for timed in missing:
            if not budget.allows():
                return
            timings = self.timings[timed.candidate]
            try:
                times = baseline if timed is self.candidates[0] else self._times(timed, cell)
            except ConversionError as error:
                timings.reason = str(error)
                continue
            timings.memory_bytes = self._processes[timed.candidate].memory_bytes
            timings.add(turn, cell, times, baseline)
            self.cache.put(self._key(timed), asdict(timings))

    def _times(self, timed: TimedCandidate, cell: Cell) -> Times:
        if timed.candidate not in self._processes:
            process = BenchmarkProcess(timed.spec)
            self._stack.callback(process.stop)
            process.start(self.folder)
            self._processes[timed.candidate] = process
        return self._processes[timed.candidate].visit(cell)

    def _cached(self, timed: TimedCandidate) -> Timings:
        return Timings(**(self.cache.get(self._key(timed)) or {}))

    def _key(self, timed: TimedCandidate) -> str:
        return self.cache.key("times", self.candidates[0].content, timed.content)
