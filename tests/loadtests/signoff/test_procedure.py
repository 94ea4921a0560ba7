"""The verdict on simulated servers whose truth is known: right each time, or undecided."""

from dataclasses import replace

import numpy as np
import pytest

from loadtests.signoff.arrivals import Arrivals, Burst
from loadtests.signoff.confidence import Outcome, verdict
from loadtests.signoff.memory import Drift, drift
from loadtests.signoff.procedure import PROFILES, Result, _good_again_s, sign_off
from loadtests.signoff.samples import Samples, independent, joined, lines
from loadtests.signoff.slo import Limit, Slo
from tests.loadtests.signoff.simulated import Server

QUICK = PROFILES["quick"]
P50, P99 = Limit("", 0.5, 0.03), Limit("", 0.99, 0.1)


def signed(server, rate=50.0, limits=(P50, P99), highest=2000.0, **options):
    result = Result(Slo("x", rate, limits, **options))
    sign_off(result, QUICK, server.load, server.memory, server.steps, highest)
    return result


def outcome_of(result, name):
    return next(line.outcome for line in result.lines if line.name == name)


def test_a_server_with_room_is_signed():
    result = signed(Server(), memory_mib_per_min=1.0)
    assert result.outcome is Outcome.PASS, result.lines
    assert result.reason == "every objective held at 50/s"
    assert [line.name for line in result.lines] == ["p50", "p99", "errors", "memory"]
    assert result.overload.recovery_s is not None
    assert result.overload.good_per_s < result.overload.samples.rate


@pytest.mark.parametrize(
    ("server", "missed"),
    [
        (Server(service_s=0.05), "p50"),  # planted latency
        (Server(tail=0.03), "p99"),  # of which p99 allows 1 %
        (Server(errors=0.01), "errors"),
        (Server(stall_s=1.0), "p99"),  # a tenth of the time
        (Server(leak_mib_per_min=6.0), "memory"),
    ],
    ids=["latency", "tail", "errors", "stall", "leak"],
)
def test_what_is_planted_is_found_and_named(server, missed):
    result = signed(server, rate=15.0, memory_mib_per_min=2.0)
    assert result.outcome is Outcome.FAIL, result.lines
    assert outcome_of(result, missed) is Outcome.FAIL
    assert missed in result.reason
    assert result.advice


def test_a_tail_of_one_percent_is_never_signed_at_p99():
    """Exactly at the limit: no number of requests decides it."""
    for _ in range(3):
        result = signed(Server(tail=0.01, slots=8), highest=0.0)
        assert outcome_of(result, "p99") is not Outcome.PASS


def test_a_rate_beyond_the_capacity_is_not_signed_and_the_advice_says_how_many_times():
    result = signed(Server(), rate=150.0)
    assert result.outcome is Outcome.FAIL
    assert "add replicas (about" in result.advice
    assert result.held < 100


@pytest.mark.parametrize("growth", [0.0, 0.02], ids=["sharp", "slow"])
@pytest.mark.parametrize(("slots", "service_s"), [(1, 0.01), (4, 0.02)])
def test_the_knee_is_within_ten_percent_below_or_above_the_truth(slots, service_s, growth):
    """The truth: the highest rate at which two minutes hold the limits."""
    profile = PROFILES["full"]
    result = Result(Slo("x", 40.0, (P50, P99)))
    server = Server(slots, service_s, growth=growth)
    sign_off(result, profile, server.load, server.memory, server.steps, 2000.0)
    truth = _truth(slots, service_s, growth)
    assert result.held == pytest.approx(truth, rel=0.1)


def _truth(slots, service_s, growth):
    slo = Slo("x", 1.0, (P50, P99))
    low, high = 1.0, 2 * slots / service_s
    while high - low > 0.01 * low:
        middle = (low + high) / 2
        samples = Server(slots, service_s, growth=growth).load(middle, 300, "truth")
        is_held = all(
            samples.missed(at).sum() <= (1 - at.share) * samples.requests for at in slo.limits
        )
        low, high = (middle, high) if is_held else (low, middle)
    return low


@pytest.mark.parametrize("phase", ["warm-up", "search"])
def test_a_target_that_ends_ends_the_sign_off_at_once(phase):
    server = Server(ends_in=phase)
    result = signed(server)
    assert result.outcome is Outcome.UNDECIDED
    assert "nobody listens at the target any more" in result.reason
    assert server.phases[-1][0] == phase
    assert result.advice == "see why the servers ended, and start them again"


def test_a_target_that_ends_under_the_target_rate_is_not_signed():
    result = signed(Server(ends_in="target"), highest=0.0)
    assert result.outcome is Outcome.FAIL
    assert result.advice == "see why the servers ended, and start them again"


def test_a_generator_that_is_late_signs_nothing():
    result = signed(Server(lag_s=0.02))
    assert result.outcome is Outcome.UNDECIDED
    assert "the load generator was late: 20.0 ms" in result.reason
    assert "load from a machine" in result.advice


def test_memory_that_cannot_be_read_is_not_signed():
    server = Server()
    server.load = _without_memory(server)
    result = signed(server, memory_mib_per_min=1.0)
    assert result.outcome is Outcome.UNDECIDED
    assert "memory not decided" in result.reason


def _without_memory(server):
    load = server.load

    def blind(*stretch):
        samples = load(*stretch)
        server.memory.restart()
        return samples

    return blind


def test_only_the_target():
    server = Server()
    result = signed(server, highest=0.0)
    assert result.outcome is Outcome.PASS
    assert {phase for phase, _ in server.phases} == {"warm-up", "target"}
    assert result.knee is None


def test_the_frontier_is_of_what_was_measured():
    result = signed(Server(service_s=0.008))
    assert result.frontier()[1] is None
    assert 0 < result.frontier()[50] <= result.frontier()[100] <= 125


def test_goodput_counts_a_request_that_misses_any_limit_once():
    result = signed(Server(tail=0.05, slots=8), limits=(Limit("", 0.9, 0.1),), goodput=0.99)
    assert outcome_of(result, "goodput") is Outcome.FAIL
    assert outcome_of(result, "p90") is Outcome.PASS


def test_a_trend_of_memory_needs_time_and_has_an_interval():
    assert drift([]) is None
    assert drift([(at, 1.0) for at in range(15)]) is None
    noise = np.random.default_rng(0).normal(0, 0.1, 60)
    growth = drift([(at, 100 + at / 60 + noise[at]) for at in range(60)])
    assert growth.mib_per_min == pytest.approx(1.0, abs=0.2)
    assert growth.low <= 1.0 <= growth.high
    flat = drift([(at, 100 + at % 2) for at in range(60)])
    assert flat.low <= 0 <= flat.high
    assert drift([(at, 100.0) for at in range(60)]) == Drift(0.0, 0.0, 0.0)


def test_a_rate_just_above_the_capacity_is_not_signed_although_each_limit_still_holds():
    """Latency grows: a minute's p99 is within the limit, an hour's is not."""
    slow = Limit("", 0.99, 5.0)
    result = signed(Server(spread=0.0), rate=106.0, limits=(slow,), highest=0.0)
    assert outcome_of(result, "p99") is Outcome.PASS
    assert result.outcome is Outcome.UNDECIDED
    assert "steadiness not decided" in result.reason
    assert "latency still rose" in result.advice


def test_the_search_does_not_take_a_queue_that_grows_for_capacity():
    result = signed(Server(), limits=(Limit("", 0.9, 3.0),), rate=80.0)
    assert result.held <= 105


def test_requests_that_are_slow_together_count_as_few():
    """A pause of 5 s in each 60 s: 8 % miss a p90, but all in two of twenty-four blocks."""
    pauses = {"stall_s": 2.0, "stall_every_s": 60.0}
    for rate in (50.0, 400.0):
        server = Server(slots=8, **pauses)
        result = signed(server, rate=rate, limits=(Limit("", 0.97, 0.1),), highest=0.0)
        assert result.outcome is not Outcome.PASS
        server = Server(slots=8, **pauses)
        result = signed(server, rate=rate, limits=(Limit("", 0.5, 0.1),), highest=0.0)
        assert result.outcome is Outcome.PASS  # far from it


def test_pauses_are_worth_fewer_requests_than_misses_at_random():
    due = np.arange(6000) / 100  # a minute, six blocks
    together = (due >= 10) & (due < 11)
    apart = np.random.default_rng(0).random(6000) < 1 / 60
    assert independent(apart, due)[0] > 2000
    assert independent(together, due)[0] < 100
    assert independent(np.zeros(6000, bool), due) == (6000, 0)


def test_how_many_more_are_needed_is_of_requests_that_are_sent():
    """Misses that come together: as many more have to be sent as they are worth less."""
    due = np.arange(6000) / 100
    latency = np.where((due >= 10) & (due < 11), 1.0, 0.01)
    samples = Samples(100, 60, due, latency, np.zeros(6000), np.full(6000, ""))
    line, _ = lines(samples, Slo("x", 100.0, (Limit("", 0.97, 0.1),)))
    requests, misses = independent(latency > 0.1, due)
    counted = line.counted
    assert (counted.requests, counted.misses) == (requests, misses)
    assert (counted.sent, counted.sent_misses) == (6000, 100)
    few = verdict(requests, misses, 0.97).more
    assert counted.more == pytest.approx(few * 6000 / requests, abs=1)
    assert line.why == (
        f"100 of 6000 missed it, and count as {misses} of {requests} independent ones; "
        f"{counted.more} more needed"
    )
    # And so many do decide it.
    count = 6000 + counted.more
    due = np.arange(count) / 100
    latency = np.where(due % 60 < 11, np.where(due % 60 >= 10, 1.0, 0.01), 0.01)
    samples = Samples(100, count / 100, due, latency, np.zeros(count), np.full(count, ""))
    line, _ = lines(samples, Slo("x", 100.0, (Limit("", 0.97, 0.1),)))
    assert line.outcome is Outcome.PASS


def test_a_limit_on_streams_is_about_streams_only():
    """A mix of 9 tasks and 1 chat, of whose first tokens 40 % are slow."""
    first_token = np.full(1000, np.nan)
    first_token[::10] = np.where(np.arange(100) % 5 < 2, 5.0, 0.1)
    first_token[20] = np.inf  # this one failed
    faults = np.full(1000, "", "<U20")
    faults[20] = "TimeoutError"
    samples = Samples(
        10,
        100,
        np.arange(1000) / 10,
        np.full(1000, 0.01),
        np.zeros(1000),
        faults,
        {"first_token": first_token},
    )
    limit = Limit("first_token", 0.95, 1.0)
    assert (len(samples.missed(limit)), samples.missed(limit).sum()) == (100, 41)
    (line, _) = lines(samples, Slo("x", 10, (limit,)))
    assert line.outcome is Outcome.FAIL
    nothing = replace(samples, parts_s={"first_token": np.full(1000, np.nan)})
    (line, _) = lines(nothing, Slo("x", 10, (limit,)))
    assert (line.outcome, line.measured) == (Outcome.UNDECIDED, "nothing")


def test_what_can_stay_undecided_is_said_with_what_would_decide_it():
    result = signed(Server(), rate=2.0, highest=0.0)
    assert result.outcome is Outcome.UNDECIDED
    assert result.advice == 'hold it for longer (soak = "50m"), or allow more errors'
    longer = signed(Server(), rate=2.0, highest=0.0, soak_s=3000.0)
    assert longer.outcome is Outcome.PASS


def test_at_a_rate_with_few_requests_nothing_is_searched_and_nothing_crashes():
    server = Server()
    result = signed(server, rate=1 / 60)
    assert result.outcome is Outcome.UNDECIDED
    assert {phase for phase, _ in server.phases} == {"warm-up", "target"}


def test_a_server_that_holds_its_only_limit_is_not_failed_by_its_recovery():
    server = Server(service_s=0.045, slots=8, spread=0.5)
    result = signed(server, rate=40.0, limits=(Limit("", 0.5, 0.05),))
    assert result.outcome is Outcome.PASS, result.lines


def _given_up_in(server, phase):
    """A generator that stops in the middle of a phase."""

    whole = server.load

    def load(rate, seconds, name, then=None):
        samples = whole(rate, seconds, name, then)
        if name != phase:
            return samples
        return replace(samples.within(0, seconds / 2), meant_s=samples.duration_s)

    return load


def test_an_overload_that_the_generator_gave_up_has_a_fault_instead_of_figures():
    server = Server()
    server.load = _given_up_in(server, "overload")
    result = signed(server)
    assert result.outcome is Outcome.PASS
    assert result.overload.fault.startswith("the load generator fell behind and stopped after 5 of")
    assert (result.overload.good_per_s, result.overload.recovery_s) == (0.0, None)


def test_a_target_that_the_generator_gave_up_is_not_signed():
    server = Server()
    server.load = _given_up_in(server, "target")
    result = signed(server)
    assert result.outcome is Outcome.UNDECIDED
    assert "the load generator fell behind and stopped" in result.reason


@pytest.mark.parametrize(("every_s", "searched"), [(100.0, True), (200.0, False)])
def test_no_stretch_is_too_short_for_a_burst(every_s, searched):
    """Two at the target, and one in each window; where that takes too long nothing is searched."""
    arrivals = Arrivals("bursty", Burst(30, every_s))
    server = Server(arrivals=arrivals)
    bursts = []
    load = server.load

    def counting(rate, seconds, phase, then=None):
        samples = load(rate, seconds, phase, then)
        at_once = np.unique(samples.due_s, return_counts=True)[1]
        bursts.append((phase, int((at_once == 30).sum())))
        return samples

    server.load = counting
    result = Result(Slo("x", 20.0, (Limit("", 0.5, 0.03),), arrivals=arrivals))
    sign_off(result, PROFILES["smoke"], server.load, server.memory, server.steps, 100.0)
    assert sum(count for phase, count in bursts if phase == "target") >= 2
    others = [count for phase, count in bursts if phase not in ("warm-up", "target")]
    assert all(others) and bool(others) is searched


def _after_ten_seconds(due_s, is_bad):
    """How soon it is good again, after ten seconds."""
    due = np.array(due_s)
    latency = np.where(np.array([is_bad(at) for at in due]), 9.0, 0.01)
    samples = Samples(1, 100, due, latency, np.zeros(len(due)), np.full(len(due), ""))
    return _good_again_s(samples, 10.0, 60.0, Slo("x", 1.0, (Limit("", 0.9, 1.0),)))


def test_seconds_without_requests_do_not_count_as_good():
    """It answers nothing for twenty seconds, in most of which nobody asks."""
    quiet = [10.5, 15.5, 20.5, 25.5, *np.arange(30.0, 70.0, 0.25)]
    assert _after_ten_seconds(quiet, lambda at: at < 30) == 20
    assert _after_ten_seconds([10.5, 11.5], lambda at: False) is None


def test_at_a_low_rate_a_failed_request_is_not_good():
    each_second = np.arange(10.5, 70.0)
    assert _after_ten_seconds(each_second, lambda at: int(at) % 2 == 0) is None
    assert _after_ten_seconds(each_second, lambda at: at < 25) == 15
    assert _after_ten_seconds(each_second, lambda at: False) == 0


def test_errors_are_of_the_time_that_is_looked_at():
    """What the overload refused is not what failed after it."""
    faults = np.array(["", "HTTP 503", "HTTP 503", "HTTP 500"])
    due = np.arange(4.0)
    samples = Samples(1, 4, due, np.full(4, 0.01), np.zeros(4), faults)
    assert samples.within(0, 3).errors == {"HTTP 503": 2}
    assert joined([samples, samples]).errors == {"HTTP 503": 4, "HTTP 500": 2}
