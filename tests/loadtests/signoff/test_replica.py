"""A replica that is killed: what must not fail, and who may be killed at all."""

import os
import re
from dataclasses import replace

import numpy as np
import pytest

from loadtests.preflight import CannotStart
from loadtests.signoff.confidence import Outcome
from loadtests.signoff.procedure import PROFILES, Result, judge_kill, not_killed, sign_off
from loadtests.signoff.replica import replica_of
from loadtests.signoff.slo import Limit, Slo
from tests.loadtests.signoff.simulated import Server


def _signed(**options):
    server = Server()
    limits = (Limit("", 0.9, 0.1),)
    result = Result(Slo("x", 50.0, limits, errors=0.01, **options))
    sign_off(result, PROFILES["smoke"], server.load, server.memory, server.steps, 0.0)
    assert result.outcome is Outcome.PASS, result.lines
    return result


BEGAN = 1000.0  # second 0 of a stretch, on the clock of the one that kills


def _killed(
    result,
    failed_s=(5.0, 5.2),
    slow_s=(5.0, 9.0),
    api="task",
    killed_s=5.0,
    back_s=12.34,
    **changes,
):
    """A stretch in which requests failed and were slow after the kill, at 5 s."""
    samples = Server().load(50.0, 25.0, "one replica killed")
    due = samples.due_s
    faults = np.where((due >= failed_s[0]) & (due < failed_s[1]), "HTTP 503", "")
    latency = np.where((due >= slow_s[0]) & (due < slow_s[1]), 2.0, samples.latency_s)
    apis = {"api": np.full(len(due), api)}
    samples = replace(samples, faults=faults, latency_s=latency, labels=apis, began=BEGAN)
    judge_kill(result, replace(samples, **changes), BEGAN + killed_s, back_s)
    return result


def test_no_request_that_may_go_elsewhere_may_fail():
    result = _killed(_signed())
    line = result.lines[-1]
    assert (line.name, line.outcome) == ("replica killed", Outcome.FAIL)
    assert result.outcome is Outcome.FAIL
    assert 0 < result.killed.failed < 30
    assert result.killed.good_again_s == 4
    assert "docs/operating.md" in result.advice


def test_without_a_failure_it_is_still_signed_and_says_how_long_it_was_slow():
    result = _killed(_signed(), failed_s=(0.0, 0.0))
    assert result.outcome is Outcome.PASS
    assert re.fullmatch(r"0 of \d+ failed, of one kill", result.lines[-1].why)
    assert (result.killed.good_again_s, result.killed.ready_again_s) == (4, 12.34)


def test_a_share_may_be_allowed_and_what_failed_before_the_kill_is_not_counted():
    assert _killed(_signed(killed_errors=0.05)).outcome is Outcome.PASS
    assert _killed(_signed(), failed_s=(1.0, 2.0)).outcome is Outcome.PASS


def test_one_that_does_not_come_back_may_have_been_no_replica():
    result = _killed(_signed(), failed_s=(0.0, 0.0), back_s=None)
    assert result.outcome is Outcome.UNDECIDED
    assert "the replica did not come back" in result.lines[-1].why
    assert _killed(_signed(), back_s=None).outcome is Outcome.FAIL


@pytest.mark.parametrize("api", ["chat", "grpc-stream"])
def test_streams_are_reported_and_not_judged(api):
    result = _killed(_signed(), api=api)
    assert result.outcome is Outcome.PASS
    assert result.killed.repeatable == 0
    assert result.killed.samples.failed.sum() > 0


def test_the_kill_is_when_it_was_and_not_when_it_was_planned():
    """A generator begins later than it is asked to: what failed before the kill is not its doing,
    and what failed right after it is."""
    assert (
        _killed(_signed(), failed_s=(5.0, 5.4), slow_s=(9.0, 9.5), killed_s=5.5).outcome
        is Outcome.PASS
    )
    assert _killed(_signed(), failed_s=(4.6, 4.9), killed_s=4.5).outcome is Outcome.FAIL


def test_a_mix_without_a_request_that_could_go_elsewhere_is_undecided():
    samples = Server().load(50.0, 25.0, "one replica killed")
    apis = np.where(samples.due_s < 4.0, "task", "chat")
    result = _killed(_signed(), failed_s=(0.0, 0.0), labels={"api": apis})
    assert "replica killed not decided" in result.reason


def test_a_stretch_that_ended_before_the_kill_or_was_given_up_decides_nothing():
    for how in ({"killed_s": 60.0}, {"duration_s": 12.0, "meant_s": 25.0}):
        result = _killed(_signed(), failed_s=(0.0, 0.0), **how)
        assert result.outcome is Outcome.UNDECIDED
        assert "replica killed not decided" in result.reason
    assert "stopped after 12 of 25 s" in result.lines[-1].why


def test_what_the_generator_spoiled_is_not_signed_by_a_kill_that_went_well():
    result = Result(Slo("x", 50.0, (Limit("", 0.9, 0.1),)))
    server = Server(lag_s=0.05)
    sign_off(result, PROFILES["smoke"], server.load, server.memory, server.steps, 0.0)
    assert _killed(result, failed_s=(0.0, 0.0)).outcome is Outcome.UNDECIDED


def test_a_kill_that_could_not_be_is_undecided():
    result = _signed()
    not_killed(result, "it does not start")
    assert result.outcome is Outcome.UNDECIDED
    assert "replica killed not decided" in result.reason


@pytest.mark.parametrize(
    ("pid", "said"),
    [(os.getpid(), "is no replica"), (2**22 + 1, "there is no process")],
    ids=["our own", "none"],  # the same in each worker of a run
)
def test_only_a_replica_may_be_killed(pid, said):
    with pytest.raises(CannotStart, match=said):
        replica_of(pid, "planted")
