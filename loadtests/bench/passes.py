"""The passes of a benchmark's contenders, in turn (``modelspec.measuring`` says why), and what they
come to."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb

from loadtests.bench.wrk import Figures, LoadTarget, run
from modelspec import measuring

Pass = Callable[[], Figures]
CONFIDENCE = 0.85  # that a ratio's band has the true median in it


@dataclass(frozen=True)
class Ratio:
    """The median of the rounds' ratios, and its noise band: from ``low`` to ``high`` lies the true
    median with a probability of ``CONFIDENCE``, whatever the noise is like (the sign test's
    interval). Few rounds give the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> "Ratio":
        ordered, n = sorted(ratios), len(ratios)
        outside, dropped = 2 / 2**n, 0  # the probability that the median is outside the band
        while dropped + 1 < (n + 1) // 2:
            more = outside + 2 * comb(n, dropped + 1) / 2**n
            if more > 1 - CONFIDENCE:
                break
            outside, dropped = more, dropped + 1
        return cls(statistics.median(ordered), ordered[dropped], ordered[n - 1 - dropped])


@dataclass(frozen=True)
class Rounds:
    """Every pass of every contender: ``figures[name][round]``."""

    figures: Mapping[str, Sequence[Figures]]

    def median(self, name: str) -> Figures:
        passes = self.figures[name]
        times = {
            metric: statistics.median(getattr(figures, metric) for figures in passes)
            for metric in ("rps", "p50_ms", "p95_ms", "p99_ms")
        }
        processes = dict.fromkeys(process for figures in passes for process in figures.cpu_us)
        cpu_us = {
            process: statistics.median(figures.cpu_us.get(process, 0.0) for figures in passes)
            for process in processes
        }
        return Figures(**times, cpu_us=cpu_us)

    def throughput(self, name: str, reference: str) -> Ratio:
        """Requests a second relative to the reference's."""
        return self._ratio(name, reference, lambda figures: figures.rps)

    def efficiency(self, name: str, reference: str) -> Ratio | None:
        """Requests per second of CPU relative to the reference's, all processes of each together;
        None if it was not measured."""
        if not all(f.total_cpu_us for f in (*self.figures[name], *self.figures[reference])):
            return None
        return self._ratio(name, reference, lambda figures: 1 / figures.total_cpu_us)

    def _ratio(self, name: str, reference: str, of: Callable[[Figures], float]) -> Ratio:
        own, other = ([of(f) for f in self.figures[contender]] for contender in (name, reference))
        return Ratio.of(measuring.ratios(own, other))


def alternate(contenders: Mapping[str, Pass], rounds: int) -> Rounds:
    """Each contender once a round; every other round in reverse, so that none is always first."""
    return Rounds(measuring.alternate(contenders, rounds))


def wrk_pass(target: LoadTarget, connections: int, seconds: int) -> Pass:
    return lambda: run(target, connections, seconds)
