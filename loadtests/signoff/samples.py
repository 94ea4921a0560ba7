"""What one stretch of load measured."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from loadtests.signoff.confidence import CONFIDENCE, Outcome, Verdict, verdict
from loadtests.signoff.slo import Limit, Slo
from loadtests.signoff.trend import BLOCKS, slope

Vector = npt.NDArray[np.float64]
# The generator was the bottleneck, and nothing is signed, if at the percentile of a limit it sent
# later than this share of the limit after it meant to, or if it used more than so much of a core.
MOST_LAG, MOST_CPU = 0.05, 0.8
GENERATOR = "generator"  # the label that says which of several generators sent a request
FEWEST_OF_A_GENERATOR = 100  # of fewer requests a percentile says nothing
# Requests that follow each other are slow together: blocks of so many seconds are independent.
BLOCK_S = 10.0


NOBODY = {"ConnectionRefusedError", "gRPC StatusCode.UNAVAILABLE"}


@dataclass(frozen=True)
class Samples:
    """One value for each request, in the order in which they were to be sent. Times are in seconds:
    ``latency_s`` from when the request was *meant* to be sent to the end of its response (however
    late the generator was), ``lag_s`` from then to when it was sent. ``faults`` are why a request
    counts as failed, or ''. ``parts_s`` are times of a request that not each has (NaN):
    ``first_token`` and ``gap`` of a stream (infinite if it failed), ``gateway`` and ``upstream`` of
    its Server-Timing. ``labels`` say of which ``tenant`` a request is, over which ``api``, and
    which GENERATOR sent it if there are several. ``meant_s`` is how long the stretch was meant to
    last if the generator gave up before its end, else 0; ``began`` is when its second 0 was, on
    ``time.perf_counter()``."""

    rate: float  # requests per second that were meant to be sent
    duration_s: float
    due_s: Vector  # from the start of the stretch
    latency_s: Vector
    lag_s: Vector
    faults: npt.NDArray[np.str_]
    parts_s: Mapping[str, Vector] = field(default_factory=dict)
    labels: Mapping[str, npt.NDArray[np.str_]] = field(default_factory=dict)
    cpu: float = 0.0  # of one core, the generator's
    meant_s: float = 0.0
    began: float = 0.0

    @property
    def requests(self) -> int:
        return len(self.latency_s)

    @cached_property
    def failed(self) -> npt.NDArray[np.bool_]:
        failed: npt.NDArray[np.bool_] = self.faults != ""
        return failed

    @property
    def is_unanswered(self) -> bool:
        """Whether nobody listened any more: each request found that nobody takes it."""
        return bool(self.requests) and set(self.faults.tolist()) <= NOBODY

    @property
    def given_up(self) -> str:
        """That the load generator gave up before the end, in words, or ''."""
        if not self.meant_s:
            return ""
        return (
            f"the load generator fell behind and stopped after {self.duration_s:.0f} of "
            f"{self.meant_s:.0f} s"
        )

    @property
    def errors(self) -> Counter[str]:
        """Why requests failed, and how many."""
        return Counter(self.faults[self.failed].tolist())

    def missed(self, limit: Limit) -> npt.NDArray[np.bool_]:
        """Of each request that the limit is about, whether it was slower, or failed."""
        return self._missed(limit)[self._has(limit.of)]

    def due_of(self, of: str) -> Vector:
        """When the requests that have this part were to be sent."""
        return self.due_s[self._has(of)]

    def within(self, begin_s: float, end_s: float) -> "Samples":
        """Only what was due in this time of the stretch."""
        part = self.only((self.due_s >= begin_s) & (self.due_s < end_s))
        is_whole = not self.meant_s or end_s <= self.duration_s
        return replace(
            part,
            duration_s=end_s - begin_s if is_whole else max(0.0, self.duration_s - begin_s),
            due_s=part.due_s - begin_s,
            meant_s=0.0 if is_whole else end_s - begin_s,
            began=self.began + begin_s,
        )

    def by(self, label: str) -> "dict[str, Samples]":
        """The requests of each value of a label; empty if they have none."""
        values = self.labels.get(label)
        if values is None:
            return {}
        return {str(value): self.only(values == value) for value in np.unique(values)}

    def only(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> "Samples":
        """Some of the requests of the same stretch, by a mask or by their indices."""
        return replace(
            self,
            due_s=self.due_s[chosen],
            latency_s=self.latency_s[chosen],
            lag_s=self.lag_s[chosen],
            faults=self.faults[chosen],
            parts_s={of: values[chosen] for of, values in self.parts_s.items()},
            labels={label: values[chosen] for label, values in self.labels.items()},
        )

    def grows(self) -> bool:
        """Whether latency rose over the stretch: more arrives than is carried, and no limit on it
        holds for long. From the medians of ten blocks: surely rising, and by over a fifth."""
        if self.requests < 20 * BLOCKS or self.duration_s < 3 * BLOCK_S:
            return False
        medians = [float(np.median(block)) for block in np.array_split(self.latency_s, BLOCKS)]
        rise, margin = slope(range(BLOCKS), medians, CONFIDENCE)
        return (rise - margin) * (BLOCKS - 1) > 0.2 * medians[0]

    def piles_up(self) -> bool:
        """The same of a short window: its last third is several times as slow as its first."""
        if self.requests < 30:
            return False
        first, *_, last = (float(np.median(part)) for part in np.array_split(self.latency_s, 3))
        return last > 3 * first

    def bad(self, slo: Slo) -> int:
        """How many requests are bad."""
        return int(self.is_bad(slo).sum())

    def is_bad(self, slo: Slo) -> npt.NDArray[np.bool_]:
        """Of each request, whether it failed or took longer than the widest limit of any kind."""
        bad = self.failed.copy()
        for of in {limit.of for limit in slo.limits}:
            widest = max((limit for limit in slo.limits if limit.of == of), key=lambda at: at.share)
            bad |= self._missed(widest)
        return bad

    def percentile_s(self, share: float, of: str = "") -> float | None:
        """Of the requests that were answered: a quick refusal must not flatter it."""
        values = self._values(of)[~self.failed & self._has(of)]
        return float(np.quantile(values, share, method="higher")) if values.size else None

    def fault(self, slo: Slo) -> str:
        """Why nothing that was measured here may be signed, or ''."""
        if self.given_up:
            return self.given_up
        if not self.requests:
            return "no request was sent"
        # One of many generators that is late would hide in the percentile of all.
        alone = self.by(GENERATOR).values()
        enough = [own.lag_s for own in alone if own.requests >= FEWEST_OF_A_GENERATOR]
        lags = [self.lag_s, *enough]
        for limit in slo.limits:
            lag_s = max(float(np.quantile(lag, limit.share)) for lag in lags)
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
        slower = np.greater(self._values(limit.of), limit.seconds)
        return slower if limit.of else slower | self.failed

    def _has(self, of: str) -> npt.NDArray[np.bool_]:
        return ~np.isnan(self._values(of))

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

    def judged(missed: npt.NDArray[np.bool_], due_s: Vector, share: float) -> Verdict:
        requests, misses = independent(missed, due_s)
        decided = verdict(requests, misses, share, confidence, looks)
        return decided.of_dependent(len(missed), int(missed.sum()))

    rows = [
        _counted(
            limit.name,
            f"at most {milliseconds(limit.seconds)}",
            milliseconds(samples.percentile_s(limit.share, limit.of)),
            judged(samples.missed(limit), samples.due_of(limit.of), limit.share),
        )
        for limit in slo.limits
    ]
    rows.append(
        _counted(
            "errors",
            f"at most {slo.errors:.3g}",
            f"{samples.failed.mean():.3%}" if count else "nothing",
            judged(samples.failed, samples.due_s, 1 - slo.errors),
        )
    )
    if slo.goodput is not None:
        bad = samples.is_bad(slo)
        rows.append(
            _counted(
                "goodput",
                f"at least {slo.goodput:.2%}",
                f"{1 - bad.mean():.2%}" if count else "nothing",
                judged(bad, samples.due_s, slo.goodput),
            )
        )
    return rows


def independent(missed: npt.NDArray[np.bool_], due_s: Vector) -> tuple[int, int]:
    """How many independent requests, and misses among them, these are worth.

    The binomial rule is about independent requests, and those of a pause miss together. So both
    numbers are divided by how much more the misses of blocks of ten seconds differ than
    independent ones would (the dispersion of a quasi-binomial model, at least 1).
    """
    requests, misses = len(missed), int(missed.sum())
    if not 0 < misses < requests:
        return requests, misses
    blocks = (due_s // BLOCK_S).astype(int)
    counts = np.bincount(blocks)
    block_misses = np.bincount(blocks, weights=missed)[counts > 0]
    counts = counts[counts > 0]
    if len(counts) < 3:
        return requests, misses
    share = misses / requests
    squares = (block_misses - counts * share) ** 2 / (counts * share * (1 - share))
    dispersion = max(1.0, float(squares.sum()) / (len(counts) - 1))
    return max(1, int(requests / dispersion)), max(1, round(misses / dispersion))


def holds(samples: Samples, slo: Slo) -> bool:
    """Whether a short window held every objective, as far as it shows: for the search of the knee,
    not for the verdict. There must be requests, and no ``fault``."""
    count = samples.requests
    missed = [(samples.missed(limit), limit.share) for limit in slo.limits]
    is_fast = all(misses.sum() <= (1 - share) * len(misses) for misses, share in missed)
    is_good = slo.goodput is None or samples.bad(slo) <= (1 - slo.goodput) * count
    few_failed = int(samples.failed.sum()) <= slo.errors * count
    return is_fast and is_good and few_failed and not samples.piles_up()


def joined(parts: Sequence[Samples]) -> Samples:
    """Several stretches at the same rate, one after the other, as one."""
    starts = np.cumsum([0.0, *(part.duration_s for part in parts[:-1])])
    labels = sorted(set().union(*(part.labels for part in parts)))
    meant_s = sum(part.meant_s or part.duration_s for part in parts)
    return Samples(
        parts[0].rate,
        sum(part.duration_s for part in parts),
        np.concatenate([part.due_s + at for part, at in zip(parts, starts, strict=True)]),
        np.concatenate([part.latency_s for part in parts]),
        np.concatenate([part.lag_s for part in parts]),
        np.concatenate([part.faults for part in parts]),
        {of: np.concatenate([part.parts_s[of] for part in parts]) for of in parts[0].parts_s},
        {label: np.concatenate([_labels(part, label) for part in parts]) for label in labels},
        max(part.cpu for part in parts),
        meant_s if any(part.meant_s for part in parts) else 0.0,
        parts[0].began,
    )


def merged(parts: Sequence[Samples], rate: float) -> Samples:
    """One stretch that several generators sent at the same time, as one, at ``rate`` in all. If one
    ended early, it ends there: what the others went on to send was not the whole load."""
    end_s = min(part.duration_s for part in parts)
    if len(parts) > 1:
        parts = [
            replace(part, labels={**part.labels, GENERATOR: np.full(part.requests, str(number))})
            for number, part in enumerate(parts)
        ]
    labels = sorted(set().union(*(part.labels for part in parts if part.requests)))
    together = Samples(
        rate,
        end_s,
        np.concatenate([part.due_s for part in parts]),
        np.concatenate([part.latency_s for part in parts]),
        np.concatenate([part.lag_s for part in parts]),
        np.concatenate([part.faults for part in parts]),
        {of: np.concatenate([part.parts_s[of] for part in parts]) for of in parts[0].parts_s},
        {label: np.concatenate([_labels(part, label) for part in parts]) for label in labels},
        max((part.cpu for part in parts if part.requests), default=0.0),
        max(part.meant_s for part in parts),
        parts[0].began,
    )
    order = np.argsort(together.due_s, kind="stable")
    return together.only(order[together.due_s[order] < end_s])


def _labels(part: Samples, label: str) -> npt.NDArray[np.str_]:
    return part.labels.get(label, np.zeros(part.requests, str))


def milliseconds(seconds: float | None) -> str:
    return "nothing" if seconds is None else f"{1000 * seconds:.4g} ms"
