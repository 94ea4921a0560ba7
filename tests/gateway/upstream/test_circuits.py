"""A circuit breaker opens when every replica fails most of a caller's requests, and closes."""

import pytest

from gateway.upstream.circuits import CIRCUITS, FORGOTTEN_S, MARGIN, OPEN_S, Circuits, Outcome
from gateway.upstream.outliers import WINDOW_S

KEY = ("m", "one")
LEAST = round(MARGIN)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def changes():
    return []


@pytest.fixture
def circuits(clock, changes):
    return Circuits(lambda *change: changes.append(change), clock)


def _end(circuits, outcome, times=1, at="a:1", key=KEY, replicas=("a:1",), is_trial=False):
    for _ in range(times):
        circuits.ended(key, at, outcome, lambda: replicas, is_trial=is_trial)


def _open(circuits, key=KEY):
    _end(circuits, Outcome.FAILED, LEAST, key=key)
    assert circuits.retry_after_s(*key) == OPEN_S


def test_nothing_is_kept_of_what_does_not_fail(circuits):
    _end(circuits, Outcome.ANSWERED, 100)
    _end(circuits, Outcome.NEITHER, 100)
    assert not circuits
    assert circuits.retry_after_s(*KEY) == 0
    assert circuits.enter(*KEY) is False


def test_it_opens_after_a_few_failures_and_not_before(circuits, changes):
    _end(circuits, Outcome.FAILED, LEAST - 1)
    assert circuits.retry_after_s(*KEY) == 0
    _end(circuits, Outcome.FAILED)
    assert circuits.retry_after_s(*KEY) == OPEN_S
    assert changes == [("m", "one", True)]
    assert circuits.open_ones("m") == {"one": OPEN_S}


def test_a_pipelines_circuit_is_its_own_and_a_callers_is_too(circuits):
    _open(circuits)
    assert circuits.retry_after_s("other", "one") == 0
    assert circuits.retry_after_s("m", "two") == 0
    assert circuits.open_ones("other") == {}


def test_half_of_them_is_not_most(circuits):
    for _ in range(50):
        _end(circuits, Outcome.FAILED)
        _end(circuits, Outcome.ANSWERED)
    assert circuits.retry_after_s(*KEY) == 0


def test_six_of_ten_is_most(circuits):
    for number in range(100):
        _end(circuits, Outcome.FAILED if number % 5 < 3 else Outcome.ANSWERED)
    assert circuits.retry_after_s(*KEY) == OPEN_S


def test_what_says_nothing_about_the_model_never_counts(circuits):
    _end(circuits, Outcome.FAILED, LEAST - 1)
    _end(circuits, Outcome.NEITHER, 100)
    assert circuits.retry_after_s(*KEY) == 0


def test_every_replica_must_fail(circuits):
    both = ("a:1", "b:1")
    _end(circuits, Outcome.FAILED, 20, at="a:1", replicas=both)
    _end(circuits, Outcome.ANSWERED, 20, at="b:1", replicas=both)
    assert circuits.retry_after_s(*KEY) == 0
    _end(circuits, Outcome.FAILED, 20 + LEAST, at="b:1", replicas=both)
    assert circuits.retry_after_s(*KEY) > 0


def test_one_that_gets_no_requests_is_not_waited_for(circuits):
    """An ejected replica, or one that is down: the others are all that there is."""
    _end(circuits, Outcome.FAILED, LEAST, at="a:1", replicas=("a:1", "b:1"))
    assert circuits.retry_after_s(*KEY) == 0
    _end(circuits, Outcome.FAILED, 1, at="a:1", replicas=("a:1",))
    assert circuits.retry_after_s(*KEY) > 0


def test_failures_that_come_seldom_open_nothing(circuits, clock):
    for _ in range(50):
        _end(circuits, Outcome.FAILED)
        clock.now += WINDOW_S
    assert circuits.retry_after_s(*KEY) == 0


def test_trials_come_one_at_a_time_and_close_it(circuits, clock, changes):
    _open(circuits)
    clock.now += OPEN_S - 1.5
    assert circuits.retry_after_s(*KEY) == 2
    clock.now += 1.5
    assert circuits.retry_after_s(*KEY) == 0
    assert circuits.enter(*KEY) is True
    assert circuits.retry_after_s(*KEY) == 1  # until that one has ended
    _end(circuits, Outcome.ANSWERED, is_trial=True)
    assert changes == [("m", "one", True), ("m", "one", False)]
    assert not circuits
    assert circuits.enter(*KEY) is False


def test_a_trial_that_fails_opens_it_for_as_long_again(circuits, clock, changes):
    _open(circuits)
    for _ in range(4):
        clock.now += OPEN_S
        assert circuits.enter(*KEY) is True
        _end(circuits, Outcome.FAILED, is_trial=True)
        assert circuits.retry_after_s(*KEY) == OPEN_S
    assert len(changes) == 1


def test_there_is_a_trial_for_every_replica_and_one_that_answers_is_enough(circuits, clock):
    both = ("a:1", "b:1")
    for address in both:
        _end(circuits, Outcome.FAILED, LEAST, at=address, replicas=both)
    clock.now += OPEN_S
    assert circuits.enter(*KEY) is True
    _end(circuits, Outcome.FAILED, at="a:1", replicas=both, is_trial=True)
    assert circuits.retry_after_s(*KEY) == 0
    assert circuits.enter(*KEY) is True
    _end(circuits, Outcome.ANSWERED, at="b:1", replicas=both, is_trial=True)
    assert not circuits


def test_a_trial_without_a_verdict_makes_room_for_the_next(circuits, clock):
    _open(circuits)
    clock.now += OPEN_S
    assert circuits.enter(*KEY) is True
    _end(circuits, Outcome.NEITHER, is_trial=True)
    assert circuits.retry_after_s(*KEY) == 0
    assert circuits.enter(*KEY) is True


def test_what_was_sent_before_it_opened_changes_nothing(circuits, clock):
    _open(circuits)
    _end(circuits, Outcome.ANSWERED, 50)
    assert circuits.retry_after_s(*KEY) == OPEN_S
    clock.now += OPEN_S
    assert circuits.enter(*KEY) is True
    _end(circuits, Outcome.FAILED, 50)
    _end(circuits, Outcome.ANSWERED, is_trial=True)
    assert circuits.retry_after_s(*KEY) == 0


def test_what_is_watched_is_bounded(circuits, clock):
    for number in range(CIRCUITS + 10):
        clock.now += 0.001
        _end(circuits, Outcome.FAILED, key=("m", str(number)))
    assert len(circuits._circuits) == CIRCUITS
    assert ("m", "0") not in circuits._circuits
    clock.now += FORGOTTEN_S + 1
    _end(circuits, Outcome.FAILED)
    assert len(circuits._circuits) == 1
