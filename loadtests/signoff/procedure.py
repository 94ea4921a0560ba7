"""The sign-off of one pipeline, phase by phase.

Warm up until latencies are steady; find the highest rate that holds every objective; measure the
curve of latency over rate below it; hold the target rate until each objective is decided; overload
at twice what is held, and see how long the target's rate takes to be good again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loadtests.signoff.confidence import CONFIDENCE, Outcome, requests_needed
from loadtests.signoff.cross_check import CrossCheck
from loadtests.signoff.knee import Knee, search
from loadtests.signoff.memory import Drift, Memory, drift
from loadtests.signoff.samples import NOBODY, Line, Samples, Vector, holds, joined, lines
from loadtests.signoff.scaling import Scaling
from loadtests.signoff.slo import STREAMS, Slo
from loadtests.signoff.steady import steady_from
from loadtests.signoff.steps import Step, Steps


class Load(Protocol):
    """Loads at ``rate`` requests per second for so many ``seconds``, and goes on at the rate of
    ``then`` for its seconds, without waiting for answers in between: what was measured."""

    def __call__(
        self, rate: float, seconds: float, phase: str, then: tuple[float, float] | None = None
    ) -> Samples: ...


LOOKS = 4  # how often the target's requests are counted before it stays undecided
REPEATS = 3  # of a window in which the load generator was late
SEE_WHY = "see why the servers ended, and start them again"
LOAD_ELSEWHERE = "load from a machine that does nothing else"
FIRST_MISSES = 10  # the first look has enough requests for so many misses
CURVE = (0.1, 0.25, 0.5, 0.75, 0.9)  # of the highest rate
OVERLOAD = 2.0
RECOVERY_S = 30.0  # at the target's rate, after the overload, and for so many requests at least
RECOVERED_S = 3  # so many seconds have to be good, one after the other
FEWEST_TO_BE_GOOD = 10  # requests that say whether a moment is good
FEWEST_IN_A_WINDOW = 30  # requests, or one slow one decides it
LONGEST_WINDOW_S = 120.0  # for a rate at which that takes longer nothing is searched
KILLED = "replica killed"
FRONTIER_MS = (1, 5, 10, 50, 100)


GROWS = Line(
    "steadiness",
    "latency does not grow",
    "it grows",
    Outcome.UNDECIDED,
    "more arrives than is carried, so that no limit holds for long",
)


@dataclass(frozen=True)
class Profile:
    """Seconds: of a warm-up's stretch, of a window of the search, the least and the most for the
    target, of the overload, and after a replica was killed. What happens once in a longer time than
    the least is not seen."""

    warm_up_s: float
    warm_ups: int
    window_s: float
    precision: float
    least_s: float
    most_s: float
    overload_s: float
    killed_s: float


PROFILES = {
    "smoke": Profile(5, 1, 2, 0.5, least_s=5, most_s=60, overload_s=2, killed_s=20),
    "quick": Profile(10, 3, 6, 0.15, least_s=60, most_s=240, overload_s=10, killed_s=60),
    "full": Profile(20, 6, 30, 0.05, least_s=600, most_s=3600, overload_s=60, killed_s=120),
}


@dataclass(frozen=True)
class Overload:
    """``good_per_s`` were answered within every limit; ``recovery_s`` is how many seconds after it
    the target's rate was good again, None if that was not seen within ``watched_s``. With a
    ``fault`` of the load generator none of it says anything of the servers."""

    samples: Samples
    good_per_s: float
    recovery_s: int | None
    watched_s: float
    fault: str = ""


@dataclass(frozen=True)
class ReplicaKilled:
    """``samples`` are the requests that had not ended when it was killed, and those after it.
    ``good_again_s`` is how many seconds after it latencies were within the limits again,
    ``ready_again_s`` the replica itself; None if that did not come. ``failed`` of ``repeatable``
    requests failed: those that may be sent to another replica."""

    samples: Samples
    repeatable: int
    failed: int
    good_again_s: int | None
    ready_again_s: float | None


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
    memory: tuple[tuple[float, float], ...] = ()  # seconds and MiB, during the target
    drift: Drift | None = None
    overload: Overload | None = None
    scaling: Scaling | None = None
    killed: ReplicaKilled | None = None
    steps: tuple[Step, ...] = ()  # of Triton, at the target
    cross_check: CrossCheck | None = None
    trace: str = ""  # what was replayed, instead of loads at a rate

    @property
    def held(self) -> float:
        """The highest rate that held every objective, in requests per second; 0 if none did."""
        return self.knee.held if self.knee else 0.0

    def frontier(self) -> dict[int, float | None]:
        """Milliseconds -> the highest rate whose p99 was at most that and of which as few failed
        as may, up to the highest that holds; None if there was none. Requests per second. Rates
        with fewer than a hundred requests have no p99."""
        windows = [*self.windows, *([self.target] if self.target else [])]
        by_rate: dict[float, list[Samples]] = {}
        for window in windows:
            if not self.held or window.rate <= self.held:
                by_rate.setdefault(window.rate, []).append(window)
        measured = [joined(parts) for parts in by_rate.values()]
        best: dict[int, float | None] = {}
        for limit in FRONTIER_MS:
            rates = [
                samples.rate
                for samples in measured
                if samples.requests >= 100
                and (p99_s := samples.percentile_s(0.99)) is not None
                and p99_s <= limit / 1000
                and samples.failed.mean() <= self.slo.errors
            ]
            best[limit] = max(rates, default=None)
        return best


class NotMeasured(Exception):
    """The load generator was the bottleneck, again and again: the message says how."""


class TargetGone(NotMeasured):
    """Nobody listens at the target any more."""

    def __init__(self, rate: float) -> None:
        super().__init__(f"nobody listens at the target any more (seen at {rate:.4g}/s)")


def sign_off(
    result: Result, profile: Profile, load: Load, memory: Memory, steps: Steps, highest: float
) -> None:
    """Fill ``result`` step by step, so that what is known is there if it is interrupted.

    ``highest`` is the highest rate to try, in requests per second; 0 to try none but the target.
    """
    slo = result.slo
    try:
        result.is_steady = warm_up(slo, profile, load)
    except TargetGone as fault:
        result.reason, result.advice = str(fault), SEE_WHY
        return
    least_window_s = max(
        FEWEST_IN_A_WINDOW / slo.tested_rate, slo.arrivals.period_s(slo.tested_rate)
    )
    is_searched = highest > 0 and least_window_s <= LONGEST_WINDOW_S
    if is_searched:
        try:
            _search(result, profile, load, highest)
        except TargetGone as fault:
            result.search_ended = result.reason = str(fault)
            result.advice = SEE_WHY
            return
        except NotMeasured as fault:
            result.search_ended = str(fault)
            if not result.held:
                result.reason, result.advice = str(fault), LOAD_ELSEWHERE
                return
        for share in CURVE if result.held else ():
            rate = share * result.held
            window = load(rate, _window_s(slo, profile, rate), "curve")
            if not window.fault(slo):
                result.windows.append(window)
    _hold_target(result, profile, load, memory, steps)
    if not result.lines:
        return
    _conclude(result)
    if is_searched:
        held = max(result.held, slo.tested_rate)
        result.overload = _overload(slo, profile, load, min(OVERLOAD * held, highest))


def judge_kill(
    result: Result, samples: Samples, killed_at: float, ready_again_s: float | None
) -> None:
    """Add what happened when a replica was killed at this ``time.perf_counter()``, in a stretch at
    the target's rate; what one kill shows is exact, so its line needs no confidence."""
    slo = result.slo
    if samples.given_up:
        not_killed(result, samples.given_up)
        return
    killed_s = killed_at - samples.began
    after = samples.only(samples.due_s + samples.latency_s >= killed_s)
    if not after.requests:
        not_killed(result, "no request was under way after the kill")
        return
    apis = after.labels.get("api")
    # A stream that has begun cannot go on elsewhere.
    may_repeat = np.ones(after.requests, bool) if apis is None else ~np.isin(apis, STREAMS)
    repeatable, failed = int(may_repeat.sum()), int(after.failed[may_repeat].sum())
    good_again_s = _good_again_s(samples, killed_s, samples.duration_s - killed_s, slo)
    result.killed = ReplicaKilled(after, repeatable, failed, good_again_s, ready_again_s)
    if not repeatable:
        if apis is None or not np.isin(samples.labels["api"], STREAMS).all():
            not_killed(result, "only streams were under way after the kill")
        return
    why = f"{failed} of {repeatable} failed, of one kill"
    outcome = Outcome.FAIL
    if failed <= slo.killed_errors * repeatable:
        outcome = Outcome.PASS
        if ready_again_s is None:  # then it may have been no replica of this target
            outcome, why = Outcome.UNDECIDED, f"{why}, but the replica did not come back"
    _add_killed(result, f"{failed / repeatable:.3%}", outcome, why)


def not_killed(result: Result, why: str) -> None:
    """Add that a replica was to be killed, and why nothing is known of that."""
    _add_killed(result, "nothing", Outcome.UNDECIDED, why)


def _add_killed(result: Result, measured: str, outcome: Outcome, why: str) -> None:
    objective = f"at most {result.slo.killed_errors:.3g} fail"
    if result.lines:  # else nothing may be signed, whatever this says
        result.lines.append(Line(KILLED, objective, measured, outcome, why))
        _conclude(result)


def sign_off_replay(
    results: Sequence[Result],
    profile: Profile,
    loads: Sequence[Load],
    replay: Callable[[], Samples],
    memory: Memory,
    steps: Steps,
) -> None:
    """Fill the result of each pipeline of a trace from one ``replay`` of it, whose requests have
    their ``pipeline`` as a label. ``loads`` warm the pipelines up."""
    for result, load in zip(results, loads, strict=True):
        try:
            result.is_steady = warm_up(result.slo, profile, load)
        except TargetGone as fault:
            result.reason, result.advice = str(fault), SEE_WHY
            return
    memory.restart()
    steps.restart()
    by_pipeline = replay().by("pipeline")
    for result in results:
        result.steps = steps.so_far(result.slo.pipeline)
        own = by_pipeline.get(result.slo.pipeline)
        if own is None:  # it ended before its first request
            result.reason, result.advice = "no request was sent", LOAD_ELSEWHERE
        elif _judge(result, [own], memory, looks=1):
            _conclude(result)


def needed_s(slo: Slo) -> float:
    """The seconds at the target's rate that decide every line of a server that holds them well."""
    return _first_look(slo) / slo.tested_rate


def highest_rate(slo: Slo, profile: Profile, load: Load, highest: float) -> float:
    """The highest rate that holds every objective, in requests per second; 0 if none does, or if
    none that can be sent is too high. Raises NotMeasured if the load generator ended the search:
    then it says nothing of the servers."""
    result = Result(slo)
    warm_up(slo, profile, load)
    _search(result, profile, load, highest)
    return result.held if result.knee and result.knee.missed else 0.0


def _search(result: Result, profile: Profile, load: Load, highest: float) -> None:
    rate = result.slo.tested_rate
    knees = search(
        rate,
        lambda rate: _holds(result, rate, _window_s(result.slo, profile, rate), load),
        precision=profile.precision,
        highest=highest,
        least=rate / 64,
    )
    for knee in knees:
        result.knee = knee


def _window_s(slo: Slo, profile: Profile, rate: float) -> float:
    """With enough requests, and a burst if there are bursts."""
    fewest_s = min(FEWEST_IN_A_WINDOW / rate, LONGEST_WINDOW_S)
    return max(profile.window_s, fewest_s, slo.arrivals.period_s(rate))


def _holds(result: Result, rate: float, seconds: float, load: Load) -> bool:
    """Whether one window held; a window in which the generator was late is repeated."""
    fault = ""
    for _ in range(REPEATS):
        samples = load(rate, seconds, "search")
        if samples.is_unanswered:
            raise TargetGone(rate)
        fault = samples.fault(result.slo)
        if not fault:
            result.windows.append(samples)
            return holds(samples, result.slo)
    raise NotMeasured(fault)


def warm_up(slo: Slo, profile: Profile, load: Load) -> bool:
    """Whether latencies became steady, at half of the rate. Raises TargetGone."""
    rate = slo.tested_rate / 2
    for _ in range(profile.warm_ups):
        seconds = max(profile.warm_up_s, min(FEWEST_IN_A_WINDOW / rate, LONGEST_WINDOW_S))
        samples = load(rate, seconds, "warm-up")
        if samples.is_unanswered:
            raise TargetGone(rate)
        is_whole = samples.requests and not samples.given_up
        if is_whole and steady_from(samples.latency_s.tolist()) < samples.requests:
            return True
    return False


def _hold_target(
    result: Result, profile: Profile, load: Load, memory: Memory, steps: Steps
) -> None:
    """Load at the target until each line is decided, in at most ``LOOKS`` looks."""
    slo = result.slo
    rate = slo.tested_rate
    # The first burst comes in the middle of its period: two periods have two.
    least_s = max(profile.least_s, slo.soak_s, 2 * slo.arrivals.period_s(rate))
    left_s = max(slo.soak_s + profile.most_s, least_s)
    needed = _first_look(slo)
    parts: list[Samples] = []
    memory.restart()
    steps.restart()
    for look in range(LOOKS):
        seconds = min(max(needed / rate, 0.0 if look else least_s), left_s)
        if seconds <= 0:
            break
        left_s -= seconds
        parts.append(load(rate, seconds, "target"))
        result.steps = steps.so_far(slo.pipeline)
        if not _judge(result, parts, memory, LOOKS):
            return
        undecided = [line for line in result.lines if line.outcome is Outcome.UNDECIDED]
        if any(line.outcome is Outcome.FAIL for line in result.lines) or not undecided:
            break
        more = [line.counted.more or 0 for line in undecided if line.counted]
        needed = max(more, default=0) or needed


def _judge(result: Result, parts: list[Samples], memory: Memory, looks: int) -> bool:
    """Fill the lines from what was measured at the target; False if none may be signed, because of
    the load generator."""
    slo = result.slo
    result.target = joined(parts)
    result.memory = tuple(memory.readings)
    if fault := result.target.fault(slo):
        result.outcome, result.reason = Outcome.UNDECIDED, fault
        result.advice, result.lines = LOAD_ELSEWHERE, []
        return False
    result.lines = lines(result.target, slo, looks=looks)
    result.drift = drift(memory.readings)
    if slo.memory_mib_per_min is not None:
        result.lines.append(_memory_line(result.drift, slo.memory_mib_per_min))
    if any(part.grows() for part in parts):
        result.lines.append(GROWS)
    return True


def _first_look(slo: Slo) -> int:
    """The requests that decide every line of a server that holds them well."""
    look_confidence = 1 - (1 - CONFIDENCE) / LOOKS
    counts = [requests_needed(FIRST_MISSES, limit.share, look_confidence) for limit in slo.limits]
    return max([*counts, requests_needed(0, 1 - slo.errors, look_confidence)])


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


def _overload(slo: Slo, profile: Profile, load: Load, rate: float) -> Overload:
    """The target's rate follows without a pause: what waits from the overload is still there."""
    seconds = max(profile.overload_s, slo.arrivals.period_s(rate))
    watched_s = max(RECOVERY_S, min(FEWEST_IN_A_WINDOW / slo.tested_rate, LONGEST_WINDOW_S))
    samples = load(rate, seconds, "overload", (slo.tested_rate, watched_s))
    during = samples.within(0, seconds)
    if fault := samples.given_up or during.fault(slo):
        return Overload(during, 0.0, None, watched_s, fault)
    good_per_s = (during.requests - during.bad(slo)) / seconds
    recovery_s = _good_again_s(samples, seconds, watched_s, slo)
    return Overload(during, good_per_s, recovery_s, watched_s)


def _good_again_s(samples: Samples, from_s: float, most_s: float, slo: Slo) -> int | None:
    """How many seconds after ``from_s`` requests are good again, and stay so for a moment; None if
    that is not seen in ``most_s``. A second without requests shows nothing."""
    after = samples.within(from_s, from_s + most_s)
    due_s, bad = after.due_s, after.is_bad(slo)
    for second in range(int(most_s)):
        first, beyond = np.searchsorted(due_s, (second, second + 1))
        is_good = first < beyond and 10 * int(bad[first:beyond].sum()) <= beyond - first
        if is_good and _stays_good(due_s, bad, second):
            return second
    return None


def _stays_good(due_s: Vector, bad: npt.NDArray[np.bool_], second: int) -> bool:
    """Whether requests from this second on are good for RECOVERED_S: of those of each second, or
    of the next few if they are fewer, at most a tenth is bad."""
    at_s = float(second)
    while at_s < second + RECOVERED_S:
        first, beyond = (int(index) for index in np.searchsorted(due_s, (at_s, at_s + 1)))
        last = max(beyond, first + FEWEST_TO_BE_GOOD)
        if last > len(due_s) or 10 * int(bad[first:last].sum()) > last - first:
            return False
        at_s = at_s + 1 if last == beyond else float(np.nextafter(due_s[last - 1], np.inf))
    return True


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
        result.advice = _longer(result)
    else:
        result.outcome = Outcome.PASS
        result.reason = f"every objective held at {rate}"


def _longer(result: Result) -> str:
    """What would decide what is undecided."""
    if result.trace:
        return "replay a longer trace, or accept wider limits"
    if GROWS in result.lines:
        return "lower the rate, or hold it for longer (soak): latency still rose at the end"
    needed = needed_s(result.slo)
    held = result.target.duration_s if result.target else 0.0
    if needed > held:
        return f'hold it for longer (soak = "{math.ceil(needed / 60)}m"), or allow more errors'
    return "hold it for longer (soak), or accept a wider limit"


def _advice(result: Result, missed: list[str]) -> str:
    """The first thing to change."""
    rate, held = result.slo.tested_rate, result.held
    errors = result.target.errors.most_common(1) if result.target else []
    if "errors" in missed and errors[0][0] in NOBODY:
        return SEE_WHY
    if "memory" in missed:
        return "find what keeps memory: restart the servers one after the other until then"
    if "errors" in missed and _fails_at_any_rate(result):
        return "look at the errors below: they come at low rates too, which no capacity mends"
    if missed == [KILLED]:
        return (
            "requests that the killed replica had were not all answered by another one: see which "
            "errors, and docs/operating.md on what is sent again"
        )
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
    return failed > result.slo.errors * sum(window.requests for window in quiet)
