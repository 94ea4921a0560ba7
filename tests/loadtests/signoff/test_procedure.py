"""The verdict on simulated servers whose truth is known: right each time, or undecided."""

import numpy as np
import pytest

from loadtests.signoff.confidence import Outcome
from loadtests.signoff.memory import Drift, drift
from loadtests.signoff.procedure import PROFILES, Result, sign_off
from loadtests.signoff.slo import Limit, Slo
from tests.loadtests.signoff.simulated import Server

QUICK = PROFILES["quick"]
P50, P99 = Limit("", 0.5, 0.03), Limit("", 0.99, 0.1)


def signed(server, rate=50.0, limits=(P50, P99), highest=2000.0, **options):
    result = Result(Slo("x", rate, limits, **options))
    sign_off(result, QUICK, server.load, server.memory, highest)
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
    sign_off(result, profile, server.load, server.memory, 2000.0)
    truth = _truth(slots, service_s, growth)
    assert result.held == pytest.approx(truth, rel=0.1)


def _truth(slots, service_s, growth):
    slo = Slo("x", 1.0, (P50, P99))
    low, high = 1.0, 2 * slots / service_s
    while high - low > 0.01 * low:
        middle = (low + high) / 2
        samples = Server(slots, service_s, growth=growth).load(middle, 300, "truth")
        is_held = all(samples.misses(at) <= (1 - at.share) * samples.requests for at in slo.limits)
        low, high = (middle, high) if is_held else (low, middle)
    return low


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

    def blind(rate, seconds, phase):
        samples = load(rate, seconds, phase)
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
    seconds = list(range(60))
    assert drift(seconds[:15], [1.0] * 15) is None
    noise = np.random.default_rng(0).normal(0, 0.1, 60)
    growth = drift(seconds, [100 + at / 60 + noise[at] for at in seconds])
    assert growth.mib_per_min == pytest.approx(1.0, abs=0.2)
    assert growth.low <= 1.0 <= growth.high
    flat = drift(seconds, [100 + at % 2 for at in seconds])
    assert flat.low <= 0 <= flat.high
    assert drift(seconds, [100.0] * 60) == Drift(0.0, 0.0, 0.0)
