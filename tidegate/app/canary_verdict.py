"""Whether a canary is as good as the version beside it: promote, roll back, or undecided.

The test is sequential: it may be asked after every request, as often as anybody likes, and still
errs with a probability of at most ``ALPHA``. A fixed-sample test that is asked again and again
until it says something nearly always says something wrong. It compares shares: of requests that
failed, and of those that took longer than each bound of the latency histogram. For each share there
is a *confidence sequence* by the method of mixtures (a beta-binomial mixture and Ville's
inequality), which contains the true share at all times at once.

Nothing is promoted by absence of evidence: promote means that the canary is shown to be no worse
than a margin, roll back that it is shown to be worse. Everything else is undecided.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf, lgamma, log
from typing import Any, Literal

from serving.errors import ServingError
from tidegate.app.top import Look

ALPHA = 0.01  # probability of a wrong verdict, however often it is asked
ERROR_MARGIN, LATENCY_MARGIN = 0.01, 0.05  # by how much a share may be higher
LEAST_REQUESTS = 100  # of each
_PRIOR = 0.5  # of the mixture: Jeffreys'
_STEPS = 40  # of a bisection
METRIC = "tidegate_canary_seconds"
Decision = Literal["promote", "roll back", "undecided"]


@dataclass(frozen=True)
class Arm:
    """What one version did: ``errors`` are 5xx, ``slower`` has for each bound in seconds how many
    of the ``answered`` took longer. Refusals (4xx) are the callers' and do not count."""

    answered: int
    errors: int
    slower: Mapping[float, int]

    @property
    def requests(self) -> int:
        return self.answered + self.errors


@dataclass(frozen=True)
class Comparison:
    """A share of the requests, with its confidence sequences."""

    what: str
    margin: float
    stable: tuple[float, float]
    canary: tuple[float, float]

    @property
    def is_worse(self) -> bool:
        return self.canary[0] > self.stable[1]

    @property
    def is_no_worse(self) -> bool:
        return self.canary[1] - self.stable[0] <= self.margin


@dataclass(frozen=True)
class Verdict:
    verdict: Decision
    reason: str
    stable_requests: int
    canary_requests: int
    comparisons: list[Comparison]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verdict(
    stable: Arm,
    canary: Arm,
    alpha: float = ALPHA,
    error_margin: float = ERROR_MARGIN,
    latency_margin: float = LATENCY_MARGIN,
    least_requests: int = LEAST_REQUESTS,
) -> Verdict:
    """The verdict on what was counted so far; the counts only ever grow."""
    bounds = sorted(stable.slower.keys() & canary.slower.keys())
    # Half of alpha for the errors, half for all latencies; half of each for either arm.
    comparisons = [
        Comparison(
            "failed",
            error_margin,
            interval(stable.errors, stable.requests, alpha / 4),
            interval(canary.errors, canary.requests, alpha / 4),
        )
    ]
    for bound in bounds:
        bound_alpha = alpha / 4 / len(bounds)
        comparisons.append(
            Comparison(
                f"took over {bound:g} s",
                latency_margin,
                interval(stable.slower[bound], stable.answered, bound_alpha),
                interval(canary.slower[bound], canary.answered, bound_alpha),
            )
        )
    decision, reason = _decide(stable, canary, comparisons, least_requests)
    return Verdict(decision, reason, stable.requests, canary.requests, comparisons)


def _decide(
    stable: Arm, canary: Arm, comparisons: list[Comparison], least_requests: int
) -> tuple[Decision, str]:
    fewest = min(stable.requests, canary.requests)
    if fewest < least_requests:
        return "undecided", f"{fewest} requests of one version: at least {least_requests} of each"
    unknown = [comparison for comparison in comparisons if not comparison.is_no_worse]
    if not unknown:
        return "promote", "in nothing is it worse by more than the margin"
    worse = [comparison for comparison in unknown if comparison.is_worse]
    if worse:
        first = worse[0]
        return "roll back", (
            f"at least {first.canary[0]:.2%} {first.what}, of the others at most "
            f"{first.stable[1]:.2%}"
        )
    first = max(unknown, key=lambda comparison: comparison.canary[1] - comparison.stable[0])
    return "undecided", (
        f"{first.canary[0]:.2%} to {first.canary[1]:.2%} {first.what}, of the others "
        f"{first.stable[0]:.2%} to {first.stable[1]:.2%}: more requests will tell"
    )


def interval(hits: int, total: int, alpha: float) -> tuple[float, float]:
    """The shares that ``hits`` of ``total`` do not contradict. The true one is in this interval for
    all totals at once with a probability of ``1 - alpha``."""
    if not total:
        return 0.0, 1.0
    misses = total - hits
    mixture = _log_beta(_PRIOR + hits, _PRIOR + misses) - _log_beta(_PRIOR, _PRIOR)

    def is_contradicted(share: float) -> bool:
        likelihood = (hits * log(share) if hits else 0.0) + (
            misses * log(1 - share) if misses else 0.0
        )
        return mixture - likelihood >= -log(alpha)

    share = hits / total
    low = _bisect(0.0, share, is_contradicted) if hits else 0.0
    high = _bisect(1.0, share, is_contradicted) if misses else 1.0
    return low, high


def _bisect(outside: float, inside: float, is_contradicted: Any) -> float:
    """The end of the interval between a share that is contradicted and one that is not, on its
    outer side."""
    for _ in range(_STEPS):
        middle = (outside + inside) / 2
        if is_contradicted(middle):
            outside = middle
        else:
            inside = middle
    return outside


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def arms(pipeline: str, look: Look) -> tuple[str, Arm, Arm]:
    """The canary of the pipeline that was asked most, what the pipeline did beside it, and what it
    did. Raises ServingError if no request could have gone to a canary."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    slower: dict[tuple[str, str], dict[float, int]] = {}
    for labels, value in look.samples.get(f"{METRIC}_count", ()):
        if labels["canary"].startswith(f"{pipeline}."):
            key = labels["canary"], labels["arm"]
            counts.setdefault(key, {})[labels["status"]] = int(value)
    for labels, value in look.samples.get(f"{METRIC}_bucket", ()):
        key, bound = (labels["canary"], labels["arm"]), float(labels["le"])
        if key in counts and labels["status"] == "2xx" and bound != inf:
            slower.setdefault(key, {})[bound] = counts[key]["2xx"] - int(value)
    canaries = {name: sum(of.values()) for (name, arm), of in counts.items() if arm == "canary"}
    if not canaries:
        raise ServingError(
            f"no canary of {pipeline} has answered a request of this gateway: start one with "
            f"`tidegate canary {pipeline} --weight 10`"
        )
    canary = max(canaries, key=lambda name: canaries[name])

    def arm(which: str) -> Arm:
        of, took = counts.get((canary, which), {}), slower.get((canary, which), {})
        return Arm(of.get("2xx", 0), of.get("5xx", 0), took)

    return canary, arm("stable"), arm("canary")
