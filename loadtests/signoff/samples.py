"""What one stretch of load measured."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from loadtests.signoff.confidence import CONFIDENCE, Outcome, Verdict, verdict
from loadtests.signoff.slo import Limit, Slo

Vector = npt.NDArray[np.float64]
# The generator was the bottleneck, and nothing is signed, if at the percentile of a limit it sent
# later than this share of the limit after it meant to, or if it used more than so much of a core.
MOST_LAG, MOST_CPU = 0.05, 0.8
# "None may fail" cannot be shown by any number of requests; that one in a thousand may, can.
FEWEST_ERRORS = 0.001


@dataclass(frozen=True)
class Samples:
    """One value for each request, in the order in which they were to be sent. Times are in seconds:
    ``latency_s`` from when the request was *meant* to be sent to the end of its response (however
    late the generator was), ``lag_s`` from then to when it was sent. ``parts_s`` are times of a
    request that not each has (NaN): ``first_token`` and ``gap`` of a stream, ``gateway`` and
    ``upstream`` of its Server-Timing."""

    rate: float  # requests per second that were meant to be sent
    duration_s: float
    due_s: Vector  # from the start of the stretch
    latency_s: Vector
    lag_s: Vector
    failed: npt.NDArray[np.bool_]
    parts_s: Mapping[str, Vector] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    cpu: float = 0.0  # of one core, the generator's

    @property
    def requests(self) -> int:
        return len(self.latency_s)

    def misses(self, limit: Limit) -> int:
        """The requests that were slower than the limit, or failed."""
        return int(self._missed(limit).sum())

    def bad(self, slo: Slo) -> int:
        """The requests that failed, or took longer than the widest limit of any kind."""
        bad = self.failed.copy()
        for of in {limit.of for limit in slo.limits}:
            widest = max((limit for limit in slo.limits if limit.of == of), key=lambda at: at.share)
            bad |= self._missed(widest)
        return int(bad.sum())

    def percentile_s(self, share: float, of: str = "") -> float | None:
        """Of the requests that were answered: a quick refusal must not flatter it."""
        values = self._values(of)[~self.failed]
        values = values[~np.isnan(values)]
        return float(np.quantile(values, share, method="higher")) if values.size else None

    def fault(self, slo: Slo) -> str:
        """Why nothing that was measured here may be signed, or ''."""
        if not self.requests:
            return "no request was sent"
        for limit in slo.limits:
            lag_s = float(np.quantile(self.lag_s, limit.share))
            if lag_s > MOST_LAG * limit.seconds:
                return (
                    f"the load generator was late: {1000 * lag_s:.1f} ms at its "
                    f"p{100 * limit.share:g}, over {MOST_LAG:.0%} of the limit of "
                    f"{1000 * limit.seconds:g} ms"
                )
        if self.cpu > MOST_CPU:
            return f"the load generator used {self.cpu:.0%} of a core: it was the bottleneck"
        return ""

    def _missed(self, limit: Limit) -> npt.NDArray[np.bool_]:
        # A stream of one token has no gap, and a NaN is not slower than anything.
        return np.greater(self._values(limit.of), limit.seconds) | self.failed

    def _values(self, of: str) -> Vector:
        return self.latency_s if not of else self.parts_s[of]


@dataclass(frozen=True)
class Line:
    """One objective, and what was measured of it. ``counted`` is there where requests decide."""

    name: str
    objective: str
    measured: str
    outcome: Outcome
    why: str
    counted: Verdict | None = None


def _counted(name: str, objective: str, measured: str, counted: Verdict) -> Line:
    return Line(name, objective, measured, counted.outcome, counted.why, counted)


def lines(samples: Samples, slo: Slo, confidence: float = CONFIDENCE, looks: int = 1) -> list[Line]:
    """Each objective of the pipeline with its verdict."""
    count = samples.requests
    rows = [
        _counted(
            limit.name,
            f"at most {milliseconds(limit.seconds)}",
            milliseconds(samples.percentile_s(limit.share, limit.of)),
            verdict(count, samples.misses(limit), limit.share, confidence, looks),
        )
        for limit in slo.limits
    ]
    failed = int(samples.failed.sum())
    allowed = slo.errors or FEWEST_ERRORS
    rows.append(
        _counted(
            "errors",
            f"at most {allowed:.3g}",
            f"{failed / count:.3%}" if count else "nothing",
            verdict(count, failed, 1 - allowed, confidence, looks),
        )
    )
    if slo.goodput is not None:
        good = count - samples.bad(slo)
        rows.append(
            _counted(
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
    is_fast = all(samples.misses(limit) <= (1 - limit.share) * count for limit in slo.limits)
    is_good = slo.goodput is None or samples.bad(slo) <= (1 - slo.goodput) * count
    few_failed = int(samples.failed.sum()) <= (slo.errors or FEWEST_ERRORS) * count
    return is_fast and is_good and few_failed


def joined(parts: Sequence[Samples]) -> Samples:
    """Several stretches at the same rate, one after the other, as one."""
    starts = np.cumsum([0.0, *(part.duration_s for part in parts[:-1])])
    return Samples(
        parts[0].rate,
        sum(part.duration_s for part in parts),
        np.concatenate([part.due_s + at for part, at in zip(parts, starts, strict=True)]),
        np.concatenate([part.latency_s for part in parts]),
        np.concatenate([part.lag_s for part in parts]),
        np.concatenate([part.failed for part in parts]),
        {of: np.concatenate([part.parts_s[of] for part in parts]) for of in parts[0].parts_s},
        sum((part.errors for part in parts), start=Counter()),
        max(part.cpu for part in parts),
    )


def milliseconds(seconds: float | None) -> str:
    return "nothing" if seconds is None else f"{1000 * seconds:.4g} ms"
