"""The highest rate that holds every limit, found by bisection between one that does and one that
does not.

A rate is tried in up to ``WINDOWS`` windows, and the majority counts: one window that a neighbour
on the machine disturbed decides nothing. What the windows leave open counts as not held: a capacity
is what was shown.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

WINDOWS = 3
GROWTH = 2.0  # from one rate that holds to the next, until one does not


@dataclass(frozen=True)
class Trial:
    """A rate in requests per second, and whether each of its windows held every limit."""

    rate: float
    windows: tuple[bool, ...]

    @property
    def holds(self) -> bool:
        return 2 * sum(self.windows) > WINDOWS


@dataclass
class Knee:
    """``held`` is the highest rate that was shown to hold (0.0: none), ``missed`` the lowest above
    it that did not (None: none was found)."""

    trials: list[Trial] = field(default_factory=list)

    @property
    def missed(self) -> float | None:
        return min((trial.rate for trial in self.trials if not trial.holds), default=None)

    @property
    def held(self) -> float:
        missed = self.missed
        rates = (trial.rate for trial in self.trials if trial.holds)
        return max((rate for rate in rates if missed is None or rate < missed), default=0.0)


def search(
    start: float,
    try_window: Callable[[float], bool],
    *,
    precision: float = 0.05,
    highest: float = 1e6,
    least: float = 0.1,
) -> Iterator[Knee]:
    """Yields what is known after each rate; the last is within ``precision`` (a share) of the knee.

    ``try_window`` loads at a rate for one window and says whether every limit held. Rates are in
    requests per second: the search begins at ``start``, goes no higher than ``highest`` (what the
    generator can send), and gives up below ``least``.
    """
    if not 0 < least <= start <= highest:
        raise ValueError(f"the search must start between {least:g}/s and {highest:g}/s")
    knee = Knee()
    rate = start
    while True:
        knee.trials.append(_trial(rate, try_window))
        yield knee
        next_rate = _next(knee, start, precision, highest, least)
        if next_rate is None:
            return
        rate = next_rate


def _trial(rate: float, try_window: Callable[[float], bool]) -> Trial:
    windows: list[bool] = []
    while len(windows) < WINDOWS:
        windows.append(try_window(rate))
        if max(windows.count(True), windows.count(False)) * 2 > WINDOWS:
            break
    return Trial(rate, tuple(windows))


def _next(knee: Knee, start: float, precision: float, highest: float, least: float) -> float | None:
    """The rate to try next; None when the knee is known well enough."""
    held, missed = knee.held, knee.missed
    if missed is None:
        return min(held * GROWTH, highest) if held < highest else None
    if not held:
        return missed / GROWTH if missed / GROWTH >= least else None
    return (held + missed) / 2 if missed - held > precision * held else None
