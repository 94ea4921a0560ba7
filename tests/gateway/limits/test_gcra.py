"""GCRA against an exact bucket, and against the bound that it must keep."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.limits.limit import Check, Limit
from gateway.limits.local import LocalStore, fits, level, spent, wait_s
from tests.gateway.limits.made import limit_of

LIMITS = st.builds(
    Limit,
    scope=st.just("key"),
    kind=st.just("requests"),
    amount=st.integers(1, 1000),
    window_s=st.sampled_from([1, 7, 60]),
    burst=st.integers(1, 50),
)
# (ms since the one before, cost)
ARRIVALS = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 20)), min_size=1, max_size=60)


def admitted(limit: Limit, arrivals: list[tuple[int, int]]) -> list[tuple[float, int]]:
    """(time, cost) of those admitted."""
    store, now_ms, admissions = LocalStore(), 5_000_000, []
    for gap_ms, cost in arrivals:
        now_ms += gap_ms
        if store.admit([Check(limit, "bucket", min(cost, limit.capacity))], now_ms / 1000).admitted:
            admissions.append((now_ms / 1000, min(cost, int(limit.capacity))))
    return admissions


@settings(deadline=None)
@given(LIMITS, ARRIVALS)
def test_no_window_holds_more_than_the_burst_and_the_rate_times_its_length(limit, arrivals):
    admissions = admitted(limit, arrivals)
    for first in range(len(admissions)):
        total = 0
        for at, cost in admissions[first:]:
            total += cost
            assert total <= limit.burst + limit.rate * (at - admissions[first][0]) + 0.01


@settings(deadline=None)
@given(LIMITS, ARRIVALS)
def test_it_decides_as_a_bucket_of_exact_fractions_does(limit, arrivals):
    rate, capacity = Fraction(int(limit.amount), limit.window_s), Fraction(limit.burst)
    tokens, store, now_ms = capacity, LocalStore(), 5_000_000
    for gap_ms, cost in arrivals:
        now_ms += gap_ms
        cost = min(cost, int(limit.burst))
        tokens = min(capacity, tokens + rate * Fraction(gap_ms, 1000))
        if store.admit([Check(limit, "bucket", cost)], now_ms / 1000).admitted:
            assert tokens >= cost - Fraction(1, 100)
            tokens -= cost
        else:
            assert tokens < cost + Fraction(1, 100)


@settings(deadline=None)
@given(LIMITS, st.floats(0, 50), st.integers(1, 50))
def test_after_the_wait_it_fits_and_a_moment_before_it_does_not(limit, used, cost):
    now, cost = 1000.0, min(cost, limit.capacity)
    tat = now + min(used, limit.capacity) / limit.rate
    wait = wait_s(level(tat, now, limit.rate), cost, limit.capacity, limit.rate)
    later = level(tat, now + wait, limit.rate)
    assert fits(later, cost, limit.capacity, limit.rate)
    if wait > 1e-4:
        sooner = level(tat, now + wait - 1e-4, limit.rate)
        assert not fits(sooner, cost, limit.capacity, limit.rate)


@settings(deadline=None)
@given(st.integers(1, 1000), st.integers(0, 1000), st.floats(0, 30))
def test_a_settled_reservation_leaves_at_most_what_asking_for_less_would_have(
    reserved, used, pause_s
):
    limit, now = limit_of("key", "tokens", 1000, 60), 1000.0
    used = min(used, reserved)
    settled = spent(now, now, limit.rate, reserved)
    settled = spent(settled, now + pause_s, limit.rate, used - reserved)
    spent_directly = spent(now, now, limit.rate, used)
    later = now + pause_s
    assert level(settled, later, limit.rate) >= level(spent_directly, later, limit.rate) - 1e-6
