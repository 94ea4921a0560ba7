"""When requests are sent: the same seed, the same times. Pure arithmetic."""

import numpy as np
import numpy.typing as npt


def poisson_times(rate: float, duration_s: float, seed: int = 0) -> npt.NDArray[np.float64]:
    """The seconds from the start at which independent callers send, ascending and below
    ``duration_s``; ``rate`` is in requests per second."""
    generator = np.random.default_rng(seed)
    expected = rate * duration_s
    # Six standard deviations more than are expected, and what is too late is cut off.
    count = int(expected + 6 * np.sqrt(expected) + 10)
    times = generator.exponential(1 / rate, count).cumsum()
    return times[times < duration_s]
