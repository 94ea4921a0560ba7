"""How throughput grows with replicas: Gunther's Universal Scalability Law, fitted to measurements.

C(N) = g N / (1 + s (N - 1) + k N (N - 1)), with the rate g of one replica, the *contention* s (what
all wait for, Amdahl's law) and the *coherency* k (what each does for every other).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

EXTRAPOLATED = 2.0  # beyond so many times the largest N that was measured a figure is a guess
RESAMPLED, INTERVAL = 400, (5.0, 95.0)  # for the interval: fits, and its percentiles
MOST_REPLICAS = 10_000

_Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """``rate`` is of one replica, in requests per second; ``measured`` are the numbers of replicas
    and their rates that it was fitted to."""

    rate: float
    contention: float
    coherency: float
    measured: tuple[tuple[int, float], ...]
    resampled: tuple[tuple[float, float, float], ...] = ()

    def at(self, replicas: float) -> float:
        """Requests per second of so many replicas."""
        return float(
            _law(np.array([float(replicas)]), self.rate, self.contention, self.coherency)[0]
        )

    def interval(self, replicas: float) -> tuple[float, float]:
        """Between what lies the rate of so many replicas, in nine of ten cases."""
        if not self.resampled:
            return self.at(replicas), self.at(replicas)
        rates = [
            float(_law(np.array([float(replicas)]), *parameters)[0])
            for parameters in self.resampled
        ]
        low, high = np.percentile(rates, INTERVAL)
        return float(low), float(high)

    def is_extrapolated(self, replicas: float) -> bool:
        """Whether so many are too far from what was measured to believe the figure."""
        return replicas > EXTRAPOLATED * max(n for n, _ in self.measured)

    def replicas_for(self, rate: float) -> int | None:
        """The least number of replicas that carry ``rate`` requests per second; None if more of
        them do not help any more."""
        best = 0.0
        for replicas in range(1, MOST_REPLICAS + 1):
            carried = self.at(replicas)
            if carried >= rate:
                return replicas
            if carried < best:
                return None
            best = carried
        return None


def fit(replicas: Sequence[int], rates: Sequence[float], seed: int = 0) -> Scaling:
    """The law through these measurements, several of each number of replicas or one.

    With fewer than three different numbers of replicas the coherency is taken as 0, with one the
    contention too. Raises ValueError without any, or for a rate that is not above 0.
    """
    n, c = np.asarray(replicas, float), np.asarray(rates, float)
    if n.size == 0 or n.shape != c.shape or not (n >= 1).all() or not (c > 0).all():
        raise ValueError("each measurement needs a number of replicas from 1 on and a rate above 0")
    free = min(len(set(replicas)), 3)
    parameters = _fit(n, c, free)
    predicted = _law(n, *parameters)
    generator = np.random.default_rng(seed)
    # Relative errors: a rate twice as high varies twice as much.
    errors = c / predicted
    resampled = tuple(
        _fit(n, predicted * generator.choice(errors, n.size), free) for _ in range(RESAMPLED)
    )
    return Scaling(
        *parameters,
        measured=tuple(zip(replicas, rates, strict=True)),
        resampled=resampled if n.size > free else (),
    )


def _law(n: _Vector, rate: float, contention: float, coherency: float) -> _Vector:
    return rate * n / (1 + contention * (n - 1) + coherency * n * (n - 1))


def _fit(n: _Vector, c: _Vector, free: int) -> tuple[float, float, float]:
    """By linear least squares without negative parameters: N / C(N) is linear in 1/g, s/g and k/g,
    here weighted so that relative errors count."""
    terms = np.stack([np.ones_like(n), n - 1, n * (n - 1)], axis=1)[:, :free]
    (slowness, *others), _ = nnls(terms * (c / n)[:, None], np.ones_like(n))
    contention, coherency = ([float(other / slowness) for other in others] + [0.0, 0.0])[:2]
    return float(1 / slowness), contention, coherency
