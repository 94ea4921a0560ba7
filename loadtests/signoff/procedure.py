"""The sign-off of one pipeline, phase by phase.

Warm up until latencies are steady; find the highest rate that holds every objective; measure the
curve of latency over rate below it; hold the target rate until each objective is decided; overload
at twice what is held, and see how long it takes to recover.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from loadtests.signoff.confidence import CONFIDENCE, Outcome, requests_needed
from loadtests.signoff.knee import Knee, search
from loadtests.signoff.memory import Drift, Memory, drift
from loadtests.signoff.samples import FEWEST_ERRORS, Line, Samples, holds, joined, lines
from loadtests.signoff.scaling import Scaling
from loadtests.signoff.slo import Slo
from loadtests.signoff.steady import steady_from

# A stretch of load: requests per second, seconds, and what it is for -> what it measured.
Load = Callable[[float, float, str], Samples]
LOOKS = 4  # how often the target's requests are counted before it stays undecided
REPEATS = 3  # of a window in which the load generator was late
LOAD_ELSEWHERE = "load from a machine that does nothing else"
FIRST_MISSES = 10  # the first look has enough requests for so many misses
CURVE = (0.1, 0.25, 0.5, 0.75, 0.9)  # of the highest rate
OVERLOAD = 2.0
SHORTEST_TREND_S = 30.0  # so long, at least, when the servers' memory is judged
LONGEST_RECOVERY_S = 30
FRONTIER_MS = (1, 5, 10, 50, 100)


@dataclass(frozen=True)
class Profile:
    """Seconds: of a warm-up's stretch, of a window of the search, the most for the target, and of
    the overload."""

    warm_up_s: float
    warm_ups: int
    window_s: float
    precision: float
    target_s: float
    overload_s: float


PROFILES = {
    "quick": Profile(10, 3, 6, precision=0.15, target_s=240, overload_s=10),
    "full": Profile(20, 6, 30, precision=0.05, target_s=3600, overload_s=60),
}


@dataclass(frozen=True)
class Overload:
    """``good_per_s`` were answered within every limit; ``recovery_s`` is how long after it the
    target's rate did not hold yet, None if that never came within 30 s."""

    samples: Samples
    good_per_s: float
    recovery_s: int | None


@dataclass
class Result:
    """``outcome`` is of the whole; ``reason`` why, in a sentence, and ``advice`` what to change
    first. What was not reached is None or empty."""

    slo: Slo
    outcome: Outcome = Outcome.UNDECIDED
    reason: str = "it was stopped before its end"
    advice: str = ""
    is_steady: bool = False
    knee: Knee | None = None
    search_ended: str = ""  # why the search ended before it found a rate that misses
    windows: list[Samples] = field(default_factory=list)  # of the search and of the curve
    target: Samples | None = None
    lines: list[Line] = field(default_factory=list)
    memory: Memory | None = None  # during the target
    drift: Drift | None = None
    overload: Overload | None = None
    scaling: Scaling | None = None

    @property
    def held(self) -> float:
        """The highest rate that held every objective, in requests per second; 0 if none did."""
        return self.knee.held if self.knee else 0.0

    def frontier(self) -> dict[int, float | None]:
        """Milliseconds -> the highest rate of a window whose p99 was at most that, and in which
        as few failed as may; None if there was none. Requests per second."""
        windows = [*self.windows, *([self.target] if self.target else [])]
        allowed = self.slo.errors or FEWEST_ERRORS
        best: dict[int, float | None] = {}
        for limit in FRONTIER_MS:
            rates = [
                window.rate
                for window in windows
                if (p99_s := window.percentile_s(0.99)) is not None
                and p99_s <= limit / 1000
                and window.failed.mean() <= allowed
            ]
            best[limit] = max(rates, default=None)
        return best


class NotMeasured(Exception):
    """The load generator was the bottleneck, again and again: the message says how."""


def sign_off(result: Result, profile: Profile, load: Load, memory: Memory, highest: float) -> None:
    """Fill ``result`` step by step, so that what is known is there if it is interrupted.

    ``highest`` is the highest rate to try, in requests per second; 0 to try none but the target.
    """
    slo = result.slo
    result.is_steady = _warm_up(slo, profile, load)
    if highest:
        try:
            _search(result, profile, load, max(highest, slo.tested_rate))
        except NotMeasured as fault:
            result.search_ended = str(fault)
            if not result.held:
                result.reason, result.advice = str(fault), LOAD_ELSEWHERE
                return
        for share in CURVE if result.held else ():
            result.windows.append(load(share * result.held, profile.window_s, "curve"))
    _hold_target(result, profile, load, memory)
    if not result.lines:
        return
    if highest:
        result.overload = _overload(slo, profile, load, max(result.held, slo.tested_rate))
        if result.overload.recovery_s is None:
            result.lines.append(
                Line(
                    "recovery",
                    f"within {LONGEST_RECOVERY_S} s",
                    "not within it",
                    Outcome.FAIL,
                    f"after {profile.overload_s:g} s of {result.overload.samples.rate:.4g}/s",
                )
            )
    _conclude(result)


def highest_rate(slo: Slo, profile: Profile, load: Load, highest: float) -> float:
    """The highest rate that holds every objective, in requests per second; 0 if none does. Raises
    NotMeasured if the load generator ended the search: then it says nothing of the servers."""
    result = Result(slo)
    _warm_up(slo, profile, load)
    _search(result, profile, load, max(highest, slo.tested_rate))
    return result.held


def _search(result: Result, profile: Profile, load: Load, highest: float) -> None:
    rate = result.slo.tested_rate
    found = search(
        rate,
        lambda rate: _holds(result, rate, profile.window_s, load),
        precision=profile.precision,
        highest=highest,
        least=rate / 64,
    )
    for knee in found:
        result.knee = knee


def _holds(result: Result, rate: float, seconds: float, load: Load) -> bool:
    """Whether one window held; a window in which the generator was late is repeated."""
    fault = ""
    for _ in range(REPEATS):
        samples = load(rate, seconds, "search")
        fault = samples.fault(result.slo)
        if not fault:
            result.windows.append(samples)
            return holds(samples, result.slo)
    raise NotMeasured(fault)


def _warm_up(slo: Slo, profile: Profile, load: Load) -> bool:
    """Whether latencies became steady, at half of the rate."""
    for _ in range(profile.warm_ups):
        samples = load(slo.tested_rate / 2, profile.warm_up_s, "warm-up")
        if samples.requests and steady_from(samples.latency_s.tolist()) < samples.requests:
            return True
    return False


def _hold_target(result: Result, profile: Profile, load: Load, memory: Memory) -> None:
    """Load at the target until each line is decided, in at most ``LOOKS`` looks."""
    slo = result.slo
    rate, left_s = slo.tested_rate, max(profile.target_s, slo.soak_s)
    needed = _first_look(slo)
    parts: list[Samples] = []
    result.memory = memory
    memory.restart()
    shortest_s = SHORTEST_TREND_S if slo.memory_mib_per_min is not None else 0.0
    for look in range(LOOKS):
        seconds = min(max(needed / rate, shortest_s, 0.0 if look else slo.soak_s), left_s)
        if seconds <= 0:
            break
        left_s -= seconds
        parts.append(load(rate, seconds, "target"))
        result.target = joined(parts)
        if fault := result.target.fault(slo):
            result.outcome, result.reason = Outcome.UNDECIDED, fault
            result.advice, result.lines = LOAD_ELSEWHERE, []
            return
        result.lines = lines(result.target, slo, looks=LOOKS)
        result.drift = drift(memory.seconds, memory.mib)
        if slo.memory_mib_per_min is not None:
            result.lines.append(_memory_line(result.drift, slo.memory_mib_per_min))
        undecided = [line for line in result.lines if line.outcome is Outcome.UNDECIDED]
        if any(line.outcome is Outcome.FAIL for line in result.lines) or not undecided:
            break
        more = [line.counted.more or 0 for line in undecided if line.counted]
        needed = max(more, default=0) or needed


def _first_look(slo: Slo) -> int:
    """The requests that decide every line of a server that holds them well."""
    each = 1 - (1 - CONFIDENCE) / LOOKS
    counts = [requests_needed(FIRST_MISSES, limit.share, each) for limit in slo.limits]
    return max([*counts, requests_needed(0, 1 - (slo.errors or FEWEST_ERRORS), each)])


def _memory_line(growth: Drift | None, limit: float) -> Line:
    if growth is not None:
        return growth.line(limit)
    return Line(
        "memory",
        f"at most {limit:g} MiB/min",
        "not measured",
        Outcome.UNDECIDED,
        "the servers' processes cannot be read from here, or not for long enough",
    )


def _overload(slo: Slo, profile: Profile, load: Load, held: float) -> Overload:
    samples = load(OVERLOAD * held, profile.overload_s, "overload")
    good_per_s = (samples.requests - samples.bad(slo)) / profile.overload_s
    for second in range(LONGEST_RECOVERY_S):
        after = load(slo.tested_rate, 1, "recovery")
        if after.requests and after.bad(slo) <= after.requests / 10:
            return Overload(samples, good_per_s, second)
    return Overload(samples, good_per_s, None)


def _conclude(result: Result) -> None:
    outcomes: dict[Outcome, list[str]] = {outcome: [] for outcome in Outcome}
    for line in result.lines:
        outcomes[line.outcome].append(line.name)
    rate = f"{result.slo.tested_rate:g}/s"
    if outcomes[Outcome.FAIL]:
        result.outcome = Outcome.FAIL
        result.reason = f"{', '.join(outcomes[Outcome.FAIL])} missed at {rate}"
        result.advice = _advice(result, outcomes[Outcome.FAIL])
    elif outcomes[Outcome.UNDECIDED]:
        result.outcome = Outcome.UNDECIDED
        result.reason = f"{', '.join(outcomes[Outcome.UNDECIDED])} not decided at {rate}"
        result.advice = "run longer (--profile full, or a soak), or accept a wider limit"
    else:
        result.outcome = Outcome.PASS
        result.reason = f"every objective held at {rate}"


def _advice(result: Result, missed: list[str]) -> str:
    """The first thing to change."""
    rate, held = result.slo.tested_rate, result.held
    if "memory" in missed:
        return "find what keeps memory: restart the servers one after the other until then"
    if "errors" in missed and _fails_at_any_rate(result):
        return "look at the errors below: they come at low rates too, which no capacity mends"
    if 0 < held < rate:
        return (
            f"{held:.4g}/s hold every limit here: add replicas (about {rate / held:.1f} times "
            "what is there), or lower the rate"
        )
    if held:
        return (
            "short windows at this rate hold it, and the long run does not: look at the timeline "
            "for a stall"
        )
    return "no rate that was tried holds every limit: raise the limits, or find what is slow"


def _fails_at_any_rate(result: Result) -> bool:
    """Whether too many fail at less than half of the target's rate."""
    quiet = [window for window in result.windows if 2 * window.rate <= result.slo.tested_rate]
    failed = sum(int(window.failed.sum()) for window in quiet)
    allowed = result.slo.errors or FEWEST_ERRORS
    return failed > allowed * sum(window.requests for window in quiet)
