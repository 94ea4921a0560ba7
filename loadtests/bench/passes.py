"""The passes of a benchmark's contenders, in turn (``modelspec.measuring`` says why), and what they
come to."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from loadtests.bench.wrk import Figures, Target, run
from modelspec import measuring

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
        return measuring.median_ratio(self._rps(name), self._rps(reference))

    def spread(self, name: str, reference: str) -> tuple[float, float]:
        """The lowest and the highest of the rounds' ratios, to judge the median by."""
        ratios = measuring.ratios(self._rps(name), self._rps(reference))
        return min(ratios), max(ratios)

    def _rps(self, name: str) -> list[float]:
        return [figures.rps for figures in self.figures[name]]


def alternate(contenders: Mapping[str, Pass], rounds: int) -> Rounds:
    """Each contender once a round; every other round in reverse, so that none is always first."""
    return Rounds(measuring.alternate(contenders, rounds))


def wrk_pass(target: Target, connections: int, seconds: int) -> Pass:
    return lambda: run(target, connections, seconds)
