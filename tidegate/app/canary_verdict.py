"""Whether a canary is as good as the version beside it: promote, roll back, or undecided.

The test is sequential: it may be asked after every request, as often as anybody likes, and still
errs with a probability of at most ``ALPHA``. A fixed-sample test that is asked again and again
until it says something nearly always says something wrong. It compares shares: of requests that
failed, and of those that took longer than each bound of the latency histogram. For each share there
is a *confidence sequence* by the method of mixtures (a beta-binomial mixture and Ville's
inequality), which contains the true share at all times at once.

The share of requests that were refused (4xx), or whose callers gave up waiting (499), is compared
too. It may be the callers' own doing, so it rolls nothing back; but nothing is promoted unless it
is shown to be no higher by more than the margin.

Nothing is promoted by absence of evidence: promote means that the canary is shown to be no worse
than a margin, roll back that it is shown to be worse. Everything else is undecided.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import inf, lgamma, log
from typing import Any, Literal

from serving.errors import ServingError
from tidegate.app.top import Look

ALPHA = 0.01  # probability of a wrong verdict, however often it is asked
ERROR_MARGIN, LATENCY_MARGIN = 0.01, 0.05  # by how much a share may be higher
LEAST_REQUESTS = 100  # of each
LONGEST = 1000.0  # how many times as many requests are looked ahead to
_PRIOR = 0.5  # of the mixture: Jeffreys'
_STEPS = 40  # of a bisection
METRIC = "tidegate_canary_seconds"
Decision = Literal["promote", "roll back", "undecided"]


@dataclass(frozen=True)
class Arm:
    """What one version did: ``errors`` are 5xx, ``slower`` has for each bound in seconds how many
    of the ``answered`` took longer, ``refused`` are 4xx."""

    answered: int
    errors: int
    slower: Mapping[float, int]
    refused: int = 0

    @property
    def requests(self) -> int:
        """Without the refused ones."""
        return self.answered + self.errors

    @property
    def sent(self) -> int:
        return self.requests + self.refused

    def times(self, factor: float) -> "Arm":
        """What it had done after so many times as many requests like these."""
        slower = {bound: round(count * factor) for bound, count in self.slower.items()}
        answered, errors, refused = (
            round(count * factor) for count in (self.answered, self.errors, self.refused)
        )
        return Arm(answered, errors, slower, refused)


@dataclass(frozen=True)
class Comparison:
    """A share of the requests, with its confidence sequences. ``rolls_back`` is False where the
    callers may be the cause."""

    what: str
    margin: float
    stable: tuple[float, float]
    canary: tuple[float, float]
    rolls_back: bool = True

    @property
    def is_worse(self) -> bool:
        return self.rolls_back and self.canary[0] > self.stable[1]

    @property
    def is_no_worse(self) -> bool:
        return self.canary[1] - self.stable[0] <= self.margin

    @property
    def verdict(self) -> Literal["no worse", "worse", "open"]:
        return "no worse" if self.is_no_worse else "worse" if self.is_worse else "open"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class Verdict:
    verdict: Decision
    reason: str
    stable_requests: int
    canary_requests: int
    comparisons: list[Comparison]

    def as_dict(self) -> dict[str, Any]:
        comparisons = [comparison.as_dict() for comparison in self.comparisons]
        return {**asdict(self), "comparisons": comparisons}


def verdict(
    stable: Arm,
    canary: Arm,
    alpha: float = ALPHA,
    error_margin: float = ERROR_MARGIN,
    latency_margin: float = LATENCY_MARGIN,
    least_requests: int = LEAST_REQUESTS,
    probe: str = "",
) -> Verdict:
    """The verdict on what was counted so far; the counts only ever grow. A canary whose golden
    answer is wrong now is not promoted: ``probe`` is what is wrong with it, or ''."""
    comparisons = _comparisons(stable, canary, alpha, error_margin, latency_margin)
    decision, reason = _decide(stable, canary, comparisons, least_requests)
    if probe and decision == "promote":
        decision, reason = "undecided", f"its golden answer is not right: {probe}"
    return Verdict(decision, reason, stable.requests, canary.requests, comparisons)


def _comparisons(
    stable: Arm, canary: Arm, alpha: float, error_margin: float, latency_margin: float
) -> list[Comparison]:
    bounds = sorted(stable.slower.keys() & canary.slower.keys())
    # A third of alpha each for errors, refusals and all latencies; half of each for either arm.
    comparisons = [
        Comparison(
            "failed",
            error_margin,
            interval(stable.errors, stable.requests, alpha / 6),
            interval(canary.errors, canary.requests, alpha / 6),
        ),
        Comparison(
            "refused",
            error_margin,
            interval(stable.refused, stable.sent, alpha / 6),
            interval(canary.refused, canary.sent, alpha / 6),
            rolls_back=False,
        ),
    ]
    for bound in bounds:
        bound_alpha = alpha / 6 / len(bounds)
        comparisons.append(
            Comparison(
                f"took over {bound:g} s",
                latency_margin,
                interval(stable.slower[bound], stable.answered, bound_alpha),
                interval(canary.slower[bound], canary.answered, bound_alpha),
            )
        )
    return comparisons


def more_requests(stable: Arm, canary: Arm) -> int | None:
    """About how many more requests, of both versions, are needed for a decision if the shares stay
    what they are; None if it is decided, or even ``LONGEST`` times as many decide nothing."""
    if not stable.requests or not canary.requests:
        return None

    def decides(factor: float) -> bool:
        return verdict(stable.times(factor), canary.times(factor)).verdict != "undecided"

    if decides(1.0) or not decides(LONGEST):
        return None
    too_few, enough = 1.0, LONGEST
    while enough / too_few > 1.1:
        middle = (too_few * enough) ** 0.5
        if decides(middle):
            enough = middle
        else:
            too_few = middle
    return round((enough - 1) * (stable.requests + canary.requests))


def _decide(
    stable: Arm, canary: Arm, comparisons: list[Comparison], least_requests: int
) -> tuple[Decision, str]:
    fewest = min(stable.requests, canary.requests)
    if fewest < least_requests:
        fewer = "the canary" if canary.requests == fewest else "the active version"
        return "undecided", (
            f"{fewer} has answered {fewest} requests, and each of the two needs {least_requests}"
        )
    unknown = [comparison for comparison in comparisons if not comparison.is_no_worse]
    if not unknown:
        return "promote", "in no check is it worse by more than the margin"
    worse = [comparison for comparison in unknown if comparison.is_worse]
    if worse:
        first = worse[0]
        return "roll back", (
            f"at least {first.canary[0]:.2%} of its requests {first.what}, and at most "
            f"{first.stable[1]:.2%} of the active version's"
        )
    first = max(unknown, key=lambda comparison: comparison.canary[1] - comparison.stable[0])
    return "undecided", (
        f"it may be worse by {first.canary[1] - first.stable[0]:.2%} of the requests that "
        f"{first.what}, and the margin is {first.margin:.0%}"
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


def routed_canary(pipeline: str, policy: Mapping[str, Any], version: int | None = None) -> str:
    """The canary that the gateway's policy in force routes callers of the pipeline to. Raises
    ServingError if there is none, or several of which ``version`` names none."""
    route: Mapping[str, Any] = policy["rules"]["routes"].get(pipeline, {})
    # Beside the weights there are settings, whose names have no dot.
    routed = [name for name, weight in route.items() if name.startswith(f"{pipeline}.") and weight]
    if version is not None:
        wanted = f"{pipeline}.v{version}"
        if wanted not in routed:
            names = ", ".join(routed) or "none"
            raise ServingError(f"{wanted} is not routed by this gateway, but {names}")
        return wanted
    if not routed:
        raise ServingError(
            f"no canary of {pipeline} is routed by this gateway: start one with "
            f"`tidegate canary {pipeline} --weight 10`"
        )
    if len(routed) > 1:
        raise ServingError(f"{', '.join(routed)} are routed: name one with --version")
    return routed[0]


def weight_of(pipeline: str, canary: str, policy: Mapping[str, Any]) -> float:
    """The percentage that the policy in force gives the canary."""
    return float(policy["rules"]["routes"][pipeline][canary])


def uncomparable(pipeline: str, canary: str, policy: Mapping[str, Any], look: Look) -> int:
    """How many requests were counted for this canary and beside it that ``arms`` leaves out."""
    counted = sum(
        int(value)
        for labels, value in look.samples.get(f"{METRIC}_count", ())
        if labels["canary"] == canary
    )
    return counted - sum(arm.sent for arm in arms(pipeline, canary, policy, look))


def arms(pipeline: str, canary: str, policy: Mapping[str, Any], look: Look) -> tuple[Arm, Arm]:
    """What the pipeline did beside this canary, and what the canary did, with the weight that the
    policy in force gives it and beside the version that is active now. What was counted with
    another weight or version is left out: together they would be compared wrongly, since the
    two arms had other shares of good and bad hours."""
    versions = next((m["versions"] for m in look.models if m["name"] == pipeline), ())
    selected = {
        "canary": canary,
        "beside": ",".join(versions),
        "weight": f"{weight_of(pipeline, canary, policy):g}",
    }

    def samples(suffix: str) -> Iterator[tuple[Mapping[str, str], float]]:
        for labels, value in look.samples.get(METRIC + suffix, ()):
            if selected.items() <= labels.items():
                yield labels, value

    counts: dict[str, dict[str, int]] = {"stable": {}, "canary": {}}
    slower: dict[str, dict[float, int]] = {"stable": {}, "canary": {}}
    for labels, value in samples("_count"):
        counts[labels["arm"]][labels["status"]] = int(value)
    for labels, value in samples("_bucket"):
        bound = float(labels["le"])
        if labels["status"] == "2xx" and bound != inf:
            slower[labels["arm"]][bound] = counts[labels["arm"]]["2xx"] - int(value)

    def arm(which: str) -> Arm:
        of = counts[which]
        return Arm(of.get("2xx", 0), of.get("5xx", 0), slower[which], of.get("4xx", 0))

    return arm("stable"), arm("canary")


def probe_of(canary: str, look: Look) -> str:
    """What is wrong with its golden answer, or ''."""
    for model in look.models:
        if model["name"] == canary:
            return str(model["probe"])
    return "the gateway does not serve it"
