"""Several load generators: what they measured is put together as if one had sent it all."""

from dataclasses import replace

import numpy as np
import pytest

from loadtests.signoff.arrivals import POISSON, Arrivals, Burst
from loadtests.signoff.confidence import Outcome
from loadtests.signoff.procedure import PROFILES, Result, sign_off
from loadtests.signoff.samples import joined, merged
from loadtests.signoff.slo import Limit, Slo
from tests.loadtests.signoff.simulated import Server


def _split(samples, count):
    """As so many generators measure it: each every so manieth request."""
    numbers = np.arange(samples.requests)
    return [samples.only(numbers % count == index) for index in range(count)]


def _signed(server, count):
    def load(rate, *stretch):
        return merged(_split(server.load(rate, *stretch), count), rate)

    limits = (Limit("", 0.5, 0.03), Limit("", 0.99, 0.1))
    result = Result(Slo("x", 50.0, limits, memory_mib_per_min=2.0))
    sign_off(result, PROFILES["quick"], load, server.memory, server.steps, 2000.0)
    return result


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ({}, Outcome.PASS),
        ({"errors": 0.01}, Outcome.FAIL),
        ({"tail": 0.03}, Outcome.FAIL),
        ({"stall_s": 1.0}, Outcome.FAIL),
        ({"lag_s": 0.02}, Outcome.UNDECIDED),
        ({"arrivals": Arrivals("bursty", Burst(20, 2.0))}, Outcome.FAIL),
    ],
)
def test_one_and_two_come_to_the_same_verdict(fault, outcome):
    alone, together = (_signed(Server(**fault), count) for count in (1, 2))
    assert alone.outcome is together.outcome is outcome
    assert alone.lines == together.lines
    assert alone.held == together.held


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_together_they_are_what_one_sends(count):
    samples = Server().load(50.0, 10.0, "")
    labels = {"tenant": np.array(["a", "b"])[np.arange(samples.requests) % 2]}
    samples = replace(samples, labels=labels, cpu=0.3)
    again = merged(_split(samples, count), 50.0)
    assert (again.rate, again.duration_s, again.cpu) == (50.0, 10.0, 0.3)
    for name in ("due_s", "latency_s", "lag_s", "faults"):
        assert (getattr(again, name) == getattr(samples, name)).all()
    assert (again.labels["tenant"] == labels["tenant"]).all()


def test_more_generators_than_requests():
    samples = Server().load(50.0, 10.0, "").within(0, 0.1)
    parts = [replace(part, cpu=float(not part.requests)) for part in _split(samples, 64)]
    again = merged(parts, 50.0)
    assert again.requests == samples.requests
    assert again.cpu == 0.0  # one that sends nothing says nothing


def test_where_one_ended_early_the_stretch_ends():
    first, second = _split(Server().load(50.0, 10.0, ""), 2)
    late = replace(second.within(0, 4), duration_s=4.0)
    assert merged([first, late], 50.0).duration_s == 4.0
    assert merged([first, late], 50.0).due_s.max() < 4.0


def test_a_stretch_that_one_gave_up_stays_one_however_it_is_cut_and_put_together():
    first, second = _split(replace(Server().load(50.0, 10.0, ""), began=7.0), 2)
    late = replace(second.within(0, 4), meant_s=10.0)
    together = merged([first, late], 50.0)
    slo = Slo("x", 50.0, ())
    said = "the load generator fell behind and stopped after 4 of 10 s"
    assert together.fault(slo) == said == together.only(together.due_s > 1).fault(slo)
    assert together.began == 7.0
    assert (together.within(1, 3).fault(slo), together.within(1, 3).began) == ("", 8.0)
    assert together.within(1, 6).given_up.endswith("stopped after 3 of 5 s")
    assert together.within(6, 9).given_up.endswith("stopped after 0 of 3 s")
    whole = Server().load(50.0, 6.0, "")
    both = joined([whole, replace(together, labels={})])
    assert both.given_up.endswith("stopped after 10 of 16 s")
    assert not joined([whole, whole]).given_up


def test_one_late_generator_of_many_does_not_hide_in_the_percentile_of_all():
    """A p99 is decided by one in a hundred, and each of two hundred sends fewer."""
    slo = Slo("x", 1000.0, (Limit("", 0.99, 0.1),))
    parts = _split(Server(slots=64).load(1000.0, 30.0, ""), 200)
    parts[7] = replace(parts[7], lag_s=np.full(parts[7].requests, 0.05))
    samples = merged(parts, 1000.0)
    assert np.quantile(samples.lag_s, 0.99) == 0
    assert "the load generator was late: 50.0 ms" in samples.fault(slo)
    assert "was late" in joined([samples, samples]).within(0, 40).fault(slo)
    few = merged([replace(part.within(0, 10), duration_s=30.0) for part in parts], 1000.0)
    assert not few.fault(slo)  # of fifty requests a percentile says nothing


def test_schedules_are_the_same_whoever_sends_them():
    due = POISSON.times(40.0, 30.0)
    assert (np.sort(np.concatenate([due[0::3], due[1::3], due[2::3]])) == due).all()
