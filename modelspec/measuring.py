"""Measure alternatives fairly: alternating passes, and ratios of passes that were neighbours.

Machines drift, and neighbours come and go: contenders run in turn, each ratio compares two passes
that were seconds apart, and the median of the ratios counts.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp, log, sqrt
from typing import TypeVar

T = TypeVar("T")


def in_turn(contenders: Iterable[T], pass_number: int) -> list[T]:
    """The order of one pass, counted from 0: every other one is reversed, so that none is always
    first and what a neighbour leaves hot or cold evens out."""
    order = list(contenders)
    return order if pass_number % 2 == 0 else order[::-1]


def alternate(contenders: Mapping[str, Callable[[], T]], passes: int) -> dict[str, list[T]]:
    """Measure each contender once in each pass; the results by name, one for each pass."""
    results: dict[str, list[T]] = {name: [] for name in contenders}
    for number in range(passes):
        for name in in_turn(contenders, number):
            results[name].append(contenders[name]())
    return results


def ratios(figures: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Each figure relative to the reference's of the same pass; ValueError if one has more."""
    return [own / other for own, other in zip(figures, reference, strict=True)]


def median_ratio(figures: Sequence[float], reference: Sequence[float]) -> float:
    """The median of ``ratios``: a pass that something disturbed does not move it."""
    return statistics.median(ratios(figures, reference))


def mean_ratio(figures: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """The geometric mean of ``ratios``, and the standard error of its logarithm, for searches that
    weigh how sure they are. Needs two passes or more."""
    logs = [log(ratio) for ratio in ratios(figures, reference)]
    return exp(statistics.fmean(logs)), statistics.stdev(logs) / sqrt(len(logs))
