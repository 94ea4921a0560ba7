"""Alternating passes, their medians, and ratios.

Machines drift, and neighbours come and go: contenders run in turn, each round's ratio compares
passes that were seconds apart, and the median of the rounds counts.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from loadtests.bench.wrk import Figures, Target, run

Pass = Callable[[], Figures]


@dataclass(frozen=True)
class Rounds:
    """Every pass of every contender: ``figures[name][round]``."""

    figures: Mapping[str, Sequence[Figures]]

    def median(self, name: str) -> Figures:
        passes = self.figures[name]
        return Figures(
            **{
                metric.name: statistics.median(getattr(figures, metric.name) for figures in passes)
                for metric in fields(Figures)
            }
        )

    def ratio(self, name: str, reference: str) -> float:
        """Throughput relative to the reference's: the median of the rounds."""
        return statistics.median(self._ratios(name, reference))

    def spread(self, name: str, reference: str) -> tuple[float, float]:
        """The lowest and the highest of the rounds' ratios, to judge the median by."""
        ratios = self._ratios(name, reference)
        return min(ratios), max(ratios)

    def _ratios(self, name: str, reference: str) -> list[float]:
        pairs = zip(self.figures[name], self.figures[reference], strict=True)
        return [own.rps / other.rps for own, other in pairs]


def alternate(contenders: Mapping[str, Pass], rounds: int) -> Rounds:
    """Each contender once a round; every other round in reverse, so that none is always first."""
    figures: dict[str, list[Figures]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            figures[name].append(contenders[name]())
    return Rounds(figures)


def wrk_pass(target: Target, connections: int, seconds: int) -> Pass:
    return lambda: run(target, connections, seconds)
