"""When requests are sent: the same seed, the same times. Pure arithmetic."""

from enum import StrEnum

import numpy as np
import numpy.typing as npt

BURST = 10  # requests that arrive together


class Arrivals(StrEnum):
    CONSTANT = "constant"  # evenly spaced
    POISSON = "poisson"  # independent callers
    BURSTY = "bursty"  # independent bursts of BURST requests


def arrival_times(
    kind: Arrivals, rate: float, duration_s: float, seed: int = 0
) -> npt.NDArray[np.float64]:
    """The seconds from the start at which requests are to be sent, ascending and below
    ``duration_s``; ``rate`` is in requests per second."""
    if kind is Arrivals.CONSTANT:
        return np.arange(0, duration_s, 1 / rate)
    generator = np.random.default_rng(seed)
    size = BURST if kind is Arrivals.BURSTY else 1
    expected = rate / size * duration_s
    # Six standard deviations more than are expected, and what is too late is cut off.
    count = int(expected + 6 * np.sqrt(expected) + 10)
    times = generator.exponential(size / rate, count).cumsum()
    return np.repeat(times[times < duration_s], size)
