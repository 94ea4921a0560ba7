"""When requests are sent, and that their latency counts from then, however they arrive."""

import time

import numpy as np
import pytest

from loadtests.signoff import open_loop
from loadtests.signoff.arrivals import POISSON, Arrivals, Burst, burst_of
from loadtests.signoff.open_loop import run
from loadtests.signoff.sending import Prepared, Response
from tests.loadtests.signoff.simulated import Server

CONSTANT = Arrivals("constant")
BURSTY = Arrivals("bursty", Burst(20, 2.0))
KINDS = [POISSON, CONSTANT, BURSTY]
each_kind = pytest.mark.parametrize("arrivals", KINDS, ids=lambda arrivals: arrivals.kind)


@each_kind
@pytest.mark.parametrize("rate", [0.5, 5.0, 50.0, 400.0])
def test_each_kind_has_the_rate_and_its_times_ascend(arrivals, rate):
    times = arrivals.times(rate, 400.0)
    expected = 400 * rate
    assert abs(len(times) - expected) <= 5 * np.sqrt(expected) + 20
    assert (np.diff(times) >= 0).all()
    assert 0 <= times[0] <= times[-1] < 400


def test_constant_arrivals_have_equal_distances():
    assert np.diff(CONSTANT.times(8.0, 10.0)) == pytest.approx(1 / 8)


def test_a_burst_has_its_size_and_its_period():
    times, counts = np.unique(BURSTY.times(30.0, 20.0), return_counts=True)
    bursts = times[counts == 20]
    assert bursts == pytest.approx(np.arange(1.0, 20.0, 2.0))
    assert (counts[counts != 20] == 1).all()


def test_at_a_lower_rate_bursts_are_rarer_and_as_large():
    times, counts = np.unique(BURSTY.times(5.0, 40.0), return_counts=True)
    assert set(counts) == {20}
    assert np.diff(times) == pytest.approx(4.0)


@each_kind
def test_a_pause_is_felt_by_each_request_that_was_to_be_sent_in_it(arrivals):
    """A server that stands still for the first second of each ten, in virtual time."""
    server = Server(slots=8, stall_s=1.0, arrivals=arrivals)
    samples = server.load(50.0, 60.0, "")
    into_the_pause = samples.due_s % 10
    stalled = into_the_pause < 1.0
    assert stalled.sum() > 100
    assert (samples.latency_s[stalled] >= 1.0 - into_the_pause[stalled]).all()


class Blocking:
    """Holds up the whole generator with its tenth request, so that those after it are late."""

    def __init__(self) -> None:
        self.count = 0

    def prepare(self):
        self.count += 1
        seconds = 0.2 if self.count == 10 else 0.0

        def send():
            time.sleep(seconds)
            return Response("", {})

        return Prepared(send)


def test_a_generator_that_gave_up_says_when_and_when_it_began(monkeypatch):
    before = time.perf_counter()
    with monkeypatch.context() as patch:
        patch.setattr(open_loop, "MOST_LATE_S", 0.1)
        samples = run(Blocking(), CONSTANT.times(60.0, 1.5), 60.0, 1.5)
    assert before <= samples.began <= time.perf_counter()
    assert 0 < samples.duration_s < samples.meant_s == 1.5
    assert samples.given_up == "the load generator fell behind and stopped after 0 of 2 s"
    whole = run(Blocking(), CONSTANT.times(5.0, 0.2), 5.0, 0.2)
    assert not whole.given_up


@each_kind
def test_a_generator_that_was_held_up_counts_from_the_intended_time(arrivals):
    samples = run(Blocking(), arrivals.times(60.0, 1.5), 60.0, 1.5)
    held_up = samples.lag_s >= 0.05
    assert held_up.any()
    assert (samples.latency_s >= samples.lag_s).all()
    # The tenth was under way for 0.2 s; each that was due meanwhile waited for its end.
    ends = samples.due_s[9] + samples.latency_s[9]
    due_meanwhile = (samples.due_s > samples.due_s[9]) & (samples.due_s < ends)
    due_meanwhile[:10] = False
    assert due_meanwhile.any()
    assert (samples.due_s + samples.latency_s)[due_meanwhile].min() >= ends - 1e-6


@pytest.mark.parametrize(
    ("text", "burst"), [("20 every 10s", Burst(20, 10.0)), (" 5 every 500ms", Burst(5, 0.5))]
)
def test_a_burst_as_it_is_written(text, burst):
    assert burst_of(text) == burst


@pytest.mark.parametrize(
    "text", ["", "20", "1 every 10s", "20 every 10", "20 each 10s", "-2 every 1s"]
)
def test_a_burst_that_is_none(text):
    with pytest.raises(ValueError, match=r"every 10s|write 250ms"):
        burst_of(text)


def test_what_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="need a burst, its size and period"):
        Arrivals("bursty")
    with pytest.raises(ValueError, match="a burst is of bursty arrivals, and these are constant"):
        Arrivals("constant", Burst(5, 1.0))
    with pytest.raises(ValueError, match="are 10 requests a second, and the rate is 5/s"):
        BURSTY.require_fits(5.0)
    BURSTY.require_fits(10.0)
