"""When requests are sent: the same seed, the same times. Pure arithmetic."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadtests.signoff.options import ARRIVALS
from modelspec.durations import seconds_of

Times = npt.NDArray[np.float64]
_BURST = re.compile(r"(\d{1,6}) every (\S+)")


@dataclass(frozen=True)
class Burst:
    """``size`` requests at once, every ``every_s`` seconds."""

    size: int
    every_s: float

    def __str__(self) -> str:
        return f"{self.size} every {self.every_s:g}s"

    @property
    def rate(self) -> float:
        """Requests per second that arrive in bursts."""
        return self.size / self.every_s


def burst_of(text: str) -> Burst:
    """``20 every 10s``; ValueError says how to write one."""
    match = _BURST.fullmatch(text.strip())
    if match is None or int(match[1]) < 2:
        raise ValueError(
            f"{text!r} is not a burst: write its size, of 2 or more, and its period: 20 every 10s"
        )
    return Burst(int(match[1]), seconds_of(match[2]))


@dataclass(frozen=True)
class Arrivals:
    """``kind`` is one of ARRIVALS; a burst belongs to ``bursty``, and to nothing else.

    - ``poisson``: callers that know nothing of each other.
    - ``constant``: one request after the other, at equal distances: the least that can happen.
    - ``bursty``: the requests of each burst at once, and the others as of ``poisson`` in between.
    """

    kind: str = "poisson"
    burst: Burst | None = None

    def __post_init__(self) -> None:
        if self.kind not in ARRIVALS:
            raise ValueError(f"arrivals are {', '.join(ARRIVALS)}, not {self.kind!r}")
        if self.kind == "bursty" and self.burst is None:
            raise ValueError("bursty arrivals need a burst, its size and period: 20 every 10s")
        if self.kind != "bursty" and self.burst is not None:
            raise ValueError(f"a burst is of bursty arrivals, and these are {self.kind}")

    def __str__(self) -> str:
        if self.burst:
            return f"bursts of {self.burst.size} every {self.burst.every_s:g} s, Poisson between"
        return {"poisson": "Poisson", "constant": "constant"}[self.kind]

    def require_fits(self, rate: float) -> None:
        """ValueError if more arrives in bursts than ``rate``, in requests per second."""
        if self.burst and self.burst.rate > rate:
            raise ValueError(
                f"bursts of {self.burst} are {self.burst.rate:.4g} requests a second, and the "
                f"rate is {rate:.4g}/s: make them smaller or rarer"
            )

    def period_s(self, rate: float) -> float:
        """The seconds from one burst to the next at this rate, in requests per second; 0 without
        bursts."""
        return max(self.burst.every_s, self.burst.size / rate) if self.burst else 0.0

    def times(self, rate: float, duration_s: float, seed: int = 0) -> Times:
        """The seconds from the start at which requests are sent, ascending and below
        ``duration_s``; ``rate`` is in requests per second, whatever the kind.

        At a rate that is less than that of the bursts, bursts come more rarely.
        """
        if self.kind == "constant":
            times = np.arange(int(rate * duration_s) + 1) / rate
            return times[times < duration_s]
        if self.burst is None:
            return poisson_times(rate, duration_s, seed)
        every_s = self.period_s(rate)
        # Not at the start: a stretch begins as its middle is.
        bursts = np.repeat(np.arange(every_s / 2, duration_s, every_s), self.burst.size)
        between = rate - self.burst.size / every_s
        if between <= 1e-9 * rate:
            return bursts
        return np.sort(np.concatenate([bursts, poisson_times(between, duration_s, seed)]))

    def schedule(
        self, rate: float, duration_s: float, then: tuple[float, float] | None = None, seed: int = 0
    ) -> tuple[Times, float]:
        """When requests are sent at ``rate`` for so many seconds, and then, without a pause, at the
        rate of ``then`` for its seconds; and how long that is, in seconds."""
        due = self.times(rate, duration_s, seed)
        if then is None:
            return due, duration_s
        after = duration_s + self.times(*then, seed + 1)
        return np.concatenate([due, after]), duration_s + then[1]


POISSON = Arrivals()


def poisson_times(rate: float, duration_s: float, seed: int = 0) -> Times:
    """The seconds from the start at which independent callers send, ascending and below
    ``duration_s``; ``rate`` is in requests per second."""
    generator = np.random.default_rng(seed)
    expected = rate * duration_s
    # Six standard deviations more than are expected, and what is too late is cut off.
    count = int(expected + 6 * np.sqrt(expected) + 10)
    times = generator.exponential(1 / rate, count).cumsum()
    return times[times < duration_s]
