"""The sign-off of one pipeline: warm up, find the knee, then hold the target rate for a verdict."""

from collections.abc import Callable
from dataclasses import dataclass, field

from loadtests.signoff.confidence import Outcome, requests_needed
from loadtests.signoff.knee import Knee, search
from loadtests.signoff.samples import Line, Samples, holds, lines
from loadtests.signoff.slo import Slo
from loadtests.signoff.steady import steady_from

# A stretch of load: requests per second, seconds, and what it is for -> what it measured.
Load = Callable[[float, float, str], Samples]
LOOKS = 4  # how often the target's requests are counted before it stays undecided
REPEATS = 3  # of a window in which the load generator was late
LOAD_ELSEWHERE = "load from a machine that does nothing else"
FIRST_MISSES = 10  # the first look has enough requests for so many misses


@dataclass(frozen=True)
class Profile:
    """Seconds: of a warm-up's stretch, of a window of the search, and the most for the target."""

    warm_up_s: float
    warm_ups: int
    window_s: float
    precision: float
    target_s: float


PROFILES = {
    "quick": Profile(warm_up_s=10, warm_ups=3, window_s=6, precision=0.15, target_s=240),
    "full": Profile(warm_up_s=20, warm_ups=6, window_s=30, precision=0.05, target_s=3600),
}


@dataclass
class Result:
    """``outcome`` is of the whole; ``reason`` why, in a sentence, and ``advice`` what to change
    first."""

    slo: Slo
    outcome: Outcome = Outcome.UNDECIDED
    reason: str = "it was stopped before its end"
    advice: str = ""
    is_steady: bool = False
    knee: Knee | None = None
    target: Samples | None = None
    lines: list[Line] = field(default_factory=list)


class NotMeasured(Exception):
    """The load generator was the bottleneck, again and again: the message says how."""


def sign_off(slo: Slo, profile: Profile, load: Load, result: Result, highest: float) -> None:
    """Fill ``result`` step by step, so that what is known is there if it is interrupted."""
    result.is_steady = _warm_up(slo, profile, load)
    found = search(
        slo.tested_rate,
        lambda rate: _holds(slo, rate, profile.window_s, load),
        precision=profile.precision,
        highest=max(highest, slo.tested_rate),
        least=slo.tested_rate / 64,
    )
    try:
        for result.knee in found:
            pass
    except NotMeasured as fault:
        if not result.knee or not result.knee.held:
            result.reason, result.advice = str(fault), LOAD_ELSEWHERE
            return
    _hold_target(slo, profile, load, result)


def _holds(slo: Slo, rate: float, seconds: float, load: Load) -> bool:
    """Whether one window held; a window in which the generator was late is repeated."""
    fault = ""
    for _ in range(REPEATS):
        samples = load(rate, seconds, "knee")
        fault = samples.fault(slo)
        if not fault:
            return holds(samples, slo)
    raise NotMeasured(fault)


def _warm_up(slo: Slo, profile: Profile, load: Load) -> bool:
    """Whether latencies became steady, at half of the rate."""
    for _ in range(profile.warm_ups):
        samples = load(slo.tested_rate / 2, profile.warm_up_s, "warm-up")
        if samples.requests and steady_from(samples.latency_s.tolist()) < samples.requests:
            return True
    return False


def _hold_target(slo: Slo, profile: Profile, load: Load, result: Result) -> None:
    """Load at the target until each line is decided, in at most ``LOOKS`` looks."""
    rate, left_s = slo.tested_rate, max(profile.target_s, slo.soak_s)
    strictest = max([limit.share for limit in slo.limits] + [1 - (slo.errors or 0.001)])
    needed = requests_needed(FIRST_MISSES, strictest)
    parts: list[Samples] = []
    for look in range(LOOKS):
        seconds = min(max(needed / rate, slo.soak_s if not look else 0.0), left_s)
        if seconds <= 0:
            break
        left_s -= seconds
        parts.append(load(rate, seconds, "target"))
        result.target = joined(parts)
        if fault := result.target.fault(slo):
            result.outcome, result.reason = Outcome.UNDECIDED, fault
            result.advice = LOAD_ELSEWHERE
            return
        result.lines = lines(result.target, slo, looks=LOOKS)
        undecided = [line for line in result.lines if line.verdict.outcome is Outcome.UNDECIDED]
        if any(line.verdict.outcome is Outcome.FAIL for line in result.lines) or not undecided:
            break
        needed = max((line.verdict.more or 0 for line in undecided), default=0) or needed
    _conclude(result)


def _conclude(result: Result) -> None:
    outcomes = {outcome: [] for outcome in Outcome}  # type: dict[Outcome, list[str]]
    for line in result.lines:
        outcomes[line.verdict.outcome].append(line.name)
    if outcomes[Outcome.FAIL]:
        result.outcome = Outcome.FAIL
        result.reason = f"{', '.join(outcomes[Outcome.FAIL])} missed at {_rate(result)}"
        held = result.knee.held if result.knee else 0.0
        result.advice = (
            f"about {held:.4g}/s hold every limit here: "
            f"add replicas (about {result.slo.tested_rate / held:.1f} times what is there), "
            "or lower the rate"
            if held
            else "no rate that was tried holds every limit: raise the limits, or find what is slow"
        )
    elif outcomes[Outcome.UNDECIDED]:
        result.outcome = Outcome.UNDECIDED
        result.reason = f"{', '.join(outcomes[Outcome.UNDECIDED])} not decided at {_rate(result)}"
        result.advice = "run longer (--profile full), or accept a wider limit"
    else:
        result.outcome = Outcome.PASS
        result.reason = f"every objective held at {_rate(result)}"


def _rate(result: Result) -> str:
    return f"{result.slo.tested_rate:g}/s"


def joined(parts: list[Samples]) -> Samples:
    """Several stretches at the same rate as one."""
    import numpy as np

    errors = sum((part.errors for part in parts), start=type(parts[0].errors)())
    return Samples(
        parts[0].rate,
        sum(part.duration_s for part in parts),
        np.concatenate([part.latency_s for part in parts]),
        np.concatenate([part.lag_s for part in parts]),
        np.concatenate([part.failed for part in parts]),
        errors,
        max(part.cpu for part in parts),
    )
