"""The times of several forms, taken in turn: each cell of each pass visits all of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from converters.cache import Say
from converters.errors import ConversionError
from converters.optimize.budget import Budget, OutOfTime
from converters.optimize.candidates import Candidate
from converters.optimize.clocks import CELLS, Cell, Clock, Times
from converters.optimize.kept import Kept
from converters.optimize.pareto import HEADLINE

PASSES = 5
# What the pick goes by comes first: a budget that ends early has that at least.
ORDER = tuple(sorted(CELLS, key=lambda cell: cell != HEADLINE))


@dataclass(frozen=True)
class Form:
    """Something that can be timed: ``spec`` is what its process is told, ``content`` what decides
    its times (the graph's SHA-256, the runtime's level, the batches)."""

    candidate: Candidate
    spec: Mapping[str, Any]
    content: Sequence[str]


@dataclass
class Visits:
    """What is kept of a form: its memory, and for each pass and cell its times and those of the
    form that ratios are against, taken within the same seconds."""

    memory_bytes: int = 0
    why_not: str = ""
    pairs: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def add(self, turn: int, cell: Cell, mine: Times, against: Times) -> None:
        self.pairs[f"{turn}/{cell.name}"] = [asdict(mine), asdict(against)]

    def has(self, turn: int, cell: Cell) -> bool:
        return f"{turn}/{cell.name}" in self.pairs or bool(self.why_not)

    def times(self) -> dict[str, Times]:
        """The median over the passes, by the name of the cell."""
        return {
            cell: Times(*(median(column) for column in zip(*(mine.values() for mine, _ in pairs))))  # noqa: B905 - all have the same three
            for cell, pairs in self._by_cell().items()
        }

    def ratios(self) -> dict[str, float]:
        """Throughput over the other form's, the median over the passes."""
        return {
            cell: median(mine["rows_s"] / other["rows_s"] for mine, other in pairs)
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
    """``forms[0]`` is what ratios are against."""

    def __init__(self, forms: Sequence[Form], kept: Kept, folder: Path, say: Say) -> None:
        self.forms, self.kept, self.folder, self.say = forms, kept, folder, say
        self.visits = {form.candidate: self._loaded(form) for form in forms}
        self._clocks: dict[Candidate, Clock] = {}

    def run(self, budget: Budget, passes: int = 0) -> dict[Candidate, Visits]:
        """As many passes as the budget allows. Raises ConversionError when ``forms[0]`` fails."""
        passes = passes or PASSES
        longest = 0.0
        with ExitStack() as clocks:
            for turn, cell, missing in self._missing(passes):
                if not budget.has_room(longest):
                    break
                started = budget.spent
                if cell == ORDER[0]:
                    self.say(f"pass {turn + 1} of {passes}: {len(missing)} forms in turn")
                try:
                    with budget.enforced():
                        self._visit(turn, cell, missing, clocks, budget)
                except OutOfTime:
                    break
                # The first round starts the processes as well: half of it is what one may take.
                longest = max(
                    longest, (budget.spent - started) / (1 if turn or cell != ORDER[0] else 2)
                )
        return self.visits

    def _missing(self, passes: int) -> Iterator[tuple[int, Cell, list[Form]]]:
        for turn in range(passes):
            for cell in ORDER:
                missing = [f for f in self.forms if not self.visits[f.candidate].has(turn, cell)]
                if missing:
                    # Every other pass backwards: what a neighbour leaves hot or cold evens out.
                    yield turn, cell, missing if turn % 2 == 0 else missing[::-1]

    def _visit(
        self, turn: int, cell: Cell, missing: Sequence[Form], clocks: ExitStack, budget: Budget
    ) -> None:
        against = self._times(self.forms[0], cell, clocks)
        for form in missing:
            if not budget.allows():
                return
            visits = self.visits[form.candidate]
            try:
                mine = against if form is self.forms[0] else self._times(form, cell, clocks)
            except ConversionError as error:
                visits.why_not = str(error)
                continue
            visits.memory_bytes = self._clocks[form.candidate].memory_bytes
            visits.add(turn, cell, mine, against)
            self.kept.put(self._key(form), asdict(visits))

    def _times(self, form: Form, cell: Cell, clocks: ExitStack) -> Times:
        if form.candidate not in self._clocks:
            clock = Clock(form.spec)
            clocks.callback(clock.stop)
            clock.start(self.folder)
            self._clocks[form.candidate] = clock
        return self._clocks[form.candidate].visit(cell)

    def _loaded(self, form: Form) -> Visits:
        return Visits(**(self.kept.get(self._key(form)) or {}))

    def _key(self, form: Form) -> str:
        return self.kept.key("times", self.forms[0].content, form.content)
