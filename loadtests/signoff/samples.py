"""What one stretch of load measured."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from loadtests.signoff.confidence import CONFIDENCE, Verdict, verdict
from loadtests.signoff.slo import Limit, Slo

_Vector = npt.NDArray[np.float64]
# The generator was the bottleneck, and nothing is signed, if it sent later than this share of the
# strictest limit after it meant to (at its p99), or used more than so much of a core.
MOST_LAG, MOST_CPU = 0.05, 0.8


@dataclass(frozen=True)
class Samples:
    """One value for each request, in the order in which they were to be sent. Times are in seconds:
    ``latency_s`` from when the request was *meant* to be sent to the end of its response (however
    late the generator was), ``lag_s`` from then to when it was sent."""

    rate: float  # requests per second that were meant to be sent
    duration_s: float
    latency_s: _Vector
    lag_s: _Vector
    failed: npt.NDArray[np.bool_]
    errors: Counter[str] = field(default_factory=Counter)
    cpu: float = 0.0  # of one core, the generator's

    @property
    def requests(self) -> int:
        return len(self.latency_s)

    def misses(self, limit: Limit) -> int:
        """The requests that were slower than the limit, or failed."""
        return int(((self.latency_s > limit.seconds) | self.failed).sum())

    def bad(self, slo: Slo) -> int:
        """The requests that failed or met not every limit."""
        strictest = max((limit.seconds for limit in slo.limits), default=np.inf)
        return int(((self.latency_s > strictest) | self.failed).sum())

    def percentile_s(self, share: float) -> float | None:
        """Of the requests that were answered: a quick refusal must not flatter it."""
        good = self.latency_s[~self.failed]
        return float(np.quantile(good, share, method="higher")) if good.size else None

    def fault(self, slo: Slo) -> str:
        """Why nothing that was measured here may be signed, or ''."""
        if not self.requests:
            return "no request was sent"
        strictest = min(limit.seconds for limit in slo.limits)
        lag_s = float(np.quantile(self.lag_s, 0.99))
        if lag_s > MOST_LAG * strictest:
            return (
                f"the load generator was late: {1000 * lag_s:.1f} ms at its p99, over "
                f"{MOST_LAG:.0%} of the limit of {1000 * strictest:g} ms"
            )
        if self.cpu > MOST_CPU:
            return f"the load generator used {self.cpu:.0%} of a core: it was the bottleneck"
        return ""


@dataclass(frozen=True)
class Line:
    """One objective and what the samples say of it."""

    name: str
    objective: str
    measured: str
    verdict: Verdict

    @property
    def is_share(self) -> bool:
        return self.name in ("errors", "goodput")


def lines(samples: Samples, slo: Slo, confidence: float = CONFIDENCE, looks: int = 1) -> list[Line]:
    """Each objective of the pipeline with its verdict."""
    count = samples.requests
    rows = [
        Line(
            limit.name,
            f"at most {_ms(limit.seconds)}",
            _ms(samples.percentile_s(limit.share)),
            verdict(count, samples.misses(limit), limit.share, confidence, looks),
        )
        for limit in slo.limits
        if not limit.of
    ]
    failed = int(samples.failed.sum())
    share = f"{failed / count:.3%}" if count else "nothing"
    # "None may fail" cannot be shown by any number of requests: one in a thousand can.
    allowed = slo.errors or 0.001
    rows.append(
        Line(
            "errors",
            f"at most {allowed:.2%}",
            share,
            verdict(count, failed, 1 - allowed, confidence, looks),
        )
    )
    if slo.goodput is not None:
        good = count - samples.bad(slo)
        rows.append(
            Line(
                "goodput",
                f"at least {slo.goodput:.2%}",
                f"{good / count:.2%}" if count else "nothing",
                verdict(count, samples.bad(slo), slo.goodput, confidence, looks),
            )
        )
    return rows


def holds(samples: Samples, slo: Slo) -> bool:
    """Whether a short window held every objective, as far as it shows: for the search of the knee,
    not for the verdict. There must be requests, and no ``fault``."""
    count = samples.requests
    is_fast = all(
        samples.misses(limit) <= (1 - limit.share) * count for limit in slo.limits if not limit.of
    )
    is_good = slo.goodput is None or samples.bad(slo) <= (1 - slo.goodput) * count
    return is_fast and is_good and samples.failed.sum() <= (slo.errors or 0.001) * count


def _ms(seconds: float | None) -> str:
    return "nothing" if seconds is None else f"{1000 * seconds:.4g} ms"
