"""Who is ejected, by comparison with the others, and how it comes back."""

import contextlib

import numpy as np
import pytest

from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    NoCapacity,
    TooLarge,
    UpstreamError,
)
from gateway.upstream.balancing import Health
from gateway.upstream.outliers import (
    EJECTED_S,
    FAILURE_ANSWERS,
    LONGEST_S,
    SLOW_START_S,
    TRIAL_S,
    TRIALS,
    Record,
    is_outlier,
)
from gateway.upstream.replicas import Permit, ReplicaPool
from tests.gateway.upstream.test_replicas import Connection


class Clock:
    """The pool's clock, which the test sets."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("gateway.upstream.replicas.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def pool(clock):
    pool = ReplicaPool(Connection, 100, np.random.default_rng(0).random)
    pool.apply(["a:1", "b:1"])
    return pool


def _send(replica, count, error=None, model="m", clock=None):
    """Requests that the lot sent to this replica."""
    for _ in range(count):
        _end(replica.permit(model, by_lot=True), error, clock)


def _end(permit, error=None, clock=None):
    with contextlib.suppress(GatewayError), permit:
        if clock:
            clock.now += 0.001
        if error:
            raise error


def _try(pool, replica, error=None):
    """The next request that this replica gets, while it is on trial."""
    permit = pool.permit("m")
    while permit.replica is not replica:
        permit = pool.permit("m")
    assert permit.is_trial
    _end(permit, error)


def _asked(pool, model="m", times=200):
    chosen = [pool.permit(model).replica.address for _ in range(times)]
    return {address: chosen.count(address) / times for address in sorted(set(chosen))}


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ((0, 7), (7, 0), True),
        ((0, 6), (6, 0), False),
        ((133, 2), (1209, 0), False),  # two failures are chance, however many the others answered
        ((186, 14), (200, 0), True),
        ((0, 4), (100, 0), False),  # too few to tell
        ((0, 100), (4, 0), False),
        ((950, 50), (1000, 0), True),  # 5 % of a thousand
        ((95, 5), (100, 0), False),  # 5 % of a hundred is chance
        ((0, 100), (0, 100), False),  # it fails everywhere
        ((50, 50), (60, 40), False),
        ((233, 88), (6, 0), False),  # six answers say little
        ((100, 0), (0, 100), False),  # the others are worse
        ((1e-15, 100), (0, 100), False),  # its last good answer has all but been forgotten
        ((0, 100), (1e-15, 100), False),
    ],
)
def test_an_outlier_is_one_by_comparison(own, others, expected):
    assert is_outlier(own, others) is expected


async def test_one_that_fails_a_model_is_ejected_for_that_model_alone(pool):
    first, second = pool.replicas
    _send(second, 10)
    _send(first, 8, UpstreamError("at once"))
    _send(first, 1, UpstreamError("at once"), model="n")
    assert first.ejected() == {"m": EJECTED_S}
    assert _asked(pool) == {"b:1": 1.0}
    assert second.ejected() == {}
    assert set(_asked(pool, "n")) == {"a:1", "b:1"}


@pytest.mark.parametrize(
    "error",
    [InvalidRequest("wrong"), TooLarge("too long"), NoCapacity("full"), DeadlineExceeded("short")],
)
async def test_what_a_client_does_wrong_ejects_nobody(pool, clock, error):
    first, second = pool.replicas
    _send(second, 1000, clock=clock)
    first.ended("m", None)
    for _ in range(1000):
        with pytest.raises(type(error)), first.permit("m", by_lot=True):
            clock.now += 0.001
            first.ended("m", None)  # it answers others meanwhile
            raise error
    assert first.ejected() == {}


async def test_a_request_that_fails_everywhere_ejects_nobody(pool):
    for _ in range(200):
        for replica in pool.replicas:
            _send(replica, 1, UpstreamError("poison"))
            _send(replica, 1)
    assert [replica.ejected() for replica in pool.replicas] == [{}, {}]


async def test_at_most_half_are_ejected_and_then_all_are_asked(clock):
    pool = ReplicaPool(Connection, 1000)
    pool.apply(["a:1", "b:1", "c:1"])
    for replica in pool.replicas:
        _send(replica, 20)
    for replica in pool.replicas:
        _send(replica, 200, UpstreamError("broken"))
    assert sum(bool(replica.ejected()) for replica in pool.replicas) <= 1
    assert len(_asked(pool, times=300)) == 2
    alone = ReplicaPool(Connection, 1000)
    alone.apply(["a:1"])
    _send(alone.replicas[0], 50, UpstreamError("broken"))
    assert alone.replicas[0].ejected() == {}
    pool.replicas[0].upstream.connection = pool.replicas[1].upstream.connection = Health.DOWN
    assert _asked(pool) == {"c:1": 1.0}


async def _ejected(pool):
    first, second = pool.replicas
    _send(second, 10)
    _send(first, 8, UpstreamError("at once"))
    assert first.ejected()
    return first, second


async def test_it_comes_back_by_trials_one_at_a_time_and_then_gradually(pool, clock):
    first, _ = await _ejected(pool)
    clock.now += EJECTED_S
    assert set(_asked(pool)) == {"a:1", "b:1"}
    with Permit(first, "m", is_trial=True):
        assert _asked(pool) == {"b:1": 1.0}  # one at a time
        clock.now += TRIAL_S  # a long stream keeps nobody waiting
        assert set(_asked(pool)) == {"a:1", "b:1"}
    for _ in range(TRIALS - 2):
        _try(pool, first)
    assert first.ejected() == {"m": 0.0}
    _try(pool, first)
    assert first.ejected() == {}
    shares = []
    for _ in range(3):
        shares.append(_asked(pool, times=1000)["a:1"])
        clock.now += SLOW_START_S / 2
    assert shares == pytest.approx([0.05, 0.25, 0.5], abs=0.06)


async def test_a_failed_trial_ejects_it_for_twice_as_long(pool, clock):
    first, second = await _ejected(pool)
    clock.now += EJECTED_S
    _try(pool, first, UpstreamError("still"))
    assert first.ejected() == {"m": 2 * EJECTED_S}
    clock.now += 2 * EJECTED_S
    _try(pool, first, InvalidRequest("a client's mistake decides nothing"))
    assert first.ejected() == {"m": 0.0}
    for _ in range(TRIALS):
        _try(pool, first)
    assert first.ejected() == {}
    clock.now += 61
    _send(second, 10)
    _send(first, 8, UpstreamError("much later"))
    assert first.ejected() == {"m": EJECTED_S}


async def test_a_poison_that_fails_a_trial_does_not_prolong_the_ejection(pool, clock):
    first, second = await _ejected(pool)
    for _ in range(5):
        clock.now += EJECTED_S
        _send(second, 8)
        _send(second, 2, UpstreamError("poison"))
        _try(pool, first, UpstreamError("the same poison"))
        assert first.ejected() == {"m": EJECTED_S}


async def test_what_is_tied_to_a_replica_decides_nothing(pool):
    """A caller whose stream or sequence stays on one replica sends it all of its poison."""
    first, second = pool.replicas
    _send(second, 100)
    for _ in range(1000):
        _end(first.permit("m"), UpstreamError("poison"))
    assert first.ejected() == {}


@pytest.mark.parametrize("seed", range(5))
async def test_poison_that_follows_the_load_ejects_nobody(clock, seed):
    """Requests that fail come while one is busy, and those that are answered while the other is."""
    pool = ReplicaPool(Connection, 1000, np.random.default_rng(seed).random)
    pool.apply(["a:1", "b:1"])
    followed = set()
    for _ in range(200):
        for busy, error in ((1, UpstreamError("poison")), (0, None)):
            with contextlib.ExitStack() as long:
                for _ in range(10):
                    long.enter_context(pool.replicas[busy].permit("m"))
                for _ in range(5):
                    permit = pool.permit("m")
                    followed.add((busy, permit.replica.address, permit.by_lot))
                    _end(permit, error, clock)
        assert [replica.ejected() for replica in pool.replicas] == [{}, {}]
    assert {(1, "a:1", False), (0, "b:1", False)} <= followed  # but for the lot, by load
    assert not {(1, "b:1", False), (0, "a:1", False)} & followed


@pytest.mark.parametrize("seed", range(10))
async def test_one_that_comes_back_as_more_fails_everywhere_is_not_blamed(clock, seed):
    """Its share grows while that of the requests that fail does: of all that it got more failed."""
    chance = np.random.default_rng(seed)
    pool = ReplicaPool(Connection, 1000, chance.random)
    pool.apply(["a:1", "b:1"])
    pool.replicas[1].back_since = clock.now
    began = clock.now
    while (age_s := clock.now - began) < 3 * SLOW_START_S:
        clock.now += 0.004
        poison = chance.random() < (0.02 if age_s < 0.5 * SLOW_START_S else 0.5)
        _end(pool.permit("m"), UpstreamError("poison") if poison else None)
        assert [replica.ejected() for replica in pool.replicas] == [{}, {}]


@pytest.mark.parametrize(("share", "limit"), [(1.0, 60), (0.2, 400), (0.05, 2500)])
async def test_one_that_fails_is_found_soon(clock, share, limit):
    """After how many requests to both, of which one fails this ``share``."""
    chance = np.random.default_rng(1)
    pool = ReplicaPool(Connection, 1000, chance.random)
    pool.apply(["a:1", "b:1"])
    sent = 0
    while not pool.replicas[0].ejected():
        sent += 1
        clock.now += 0.002
        permit = pool.permit("m")
        fails = permit.replica is pool.replicas[0] and chance.random() < share
        _end(permit, UpstreamError("broken") if fails else None)
        assert sent < limit
    assert not pool.replicas[1].ejected()


async def test_one_that_was_down_comes_back_gradually(pool, clock):
    first = pool.replicas[0]
    first.upstream.live = NoCapacity("gone")
    await pool.check()
    first.upstream.live = True
    await pool.check()
    assert _asked(pool, times=1000)["a:1"] == pytest.approx(0.05, abs=0.03)
    clock.now += SLOW_START_S
    assert _asked(pool, times=1000)["a:1"] == pytest.approx(0.5, abs=0.06)


def test_latency_is_an_average_of_what_is_recent():
    record = Record()
    for _ in range(50):
        record.answered(0.010, 1.0)
    record.answered(0.300, 1.0)
    assert record.latency_s(1.0) == pytest.approx(0.014, abs=0.001)
    record.failed(1.0)  # as eight answers
    assert record.latency_s(1.0) == pytest.approx(0.017, abs=0.001)
    assert record.latency_s(20.0) == 0.0
    record.answered(0.002, 20.0)
    assert record.latency_s(20.0) == pytest.approx(0.002)


def test_a_replica_that_stays_broken_for_days_is_tried_once_a_minute_for_days():
    record = Record()
    for minute in range(2000):
        record.eject(60.0 * minute)
    assert record.ejected_until == 60.0 * 1999 + LONGEST_S


def test_a_slow_first_answer_is_forgotten_after_a_pause_without_another():
    """Beside busy replicas it would get no second request, and stay slow for as long."""
    record = Record()
    record.answered(0.3, 1.0)
    assert record.latency_s(2.5) == pytest.approx(0.3)
    assert record.latency_s(2.7) == 0.0
    record.answered(0.005, 2.8)
    assert record.latency_s(2.9) == pytest.approx(0.005)


def test_failures_in_a_row_make_latency_a_few_times_longer_and_no_more():
    record, now = Record(), 1000.0
    for _ in range(100):
        now += 0.01
        record.answered(0.01, now)
    for _ in range(5000):
        now += 0.001
        record.failed(now)
    assert record.latency_s(now) == pytest.approx(FAILURE_ANSWERS * 0.01)
    for _ in range(100):
        now += 0.01
        record.answered(0.01, now)
    assert record.latency_s(now) == pytest.approx(0.01, rel=0.01)
