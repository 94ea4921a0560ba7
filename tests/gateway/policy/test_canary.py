"""A canary's share of the callers: as large as its weight, sticky, none if it is unhealthy."""

from collections import Counter

import pytest

from gateway.policy.canary import choose

CALLERS = [f"key{index}" for index in range(4000)]
WEIGHTS = {"m.v7": 10, "m.v8": 30}


def _is_healthy(name: str) -> bool:
    return True


def _shares(weights):
    return Counter(choose("m", weights, caller, _is_healthy) for caller in CALLERS)


def test_each_gets_its_percent_of_the_callers():
    shares = _shares(WEIGHTS)
    assert shares["m.v7"] == pytest.approx(400, abs=80)
    assert shares["m.v8"] == pytest.approx(1200, abs=120)
    assert sum(shares.values()) == len(CALLERS)


def test_a_caller_stays_where_it_was_and_a_greater_weight_only_adds():
    before = {
        caller for caller in CALLERS if choose("m", {"m.v7": 10}, caller, _is_healthy) == "m.v7"
    }
    after = {
        caller for caller in CALLERS if choose("m", {"m.v7": 20}, caller, _is_healthy) == "m.v7"
    }
    assert before < after


@pytest.mark.parametrize(("percent", "served"), [(0, {"m"}), (100, {"m.v7"})])
def test_none_and_all(percent, served):
    assert set(_shares({"m.v7": percent})) == served


def test_a_canary_that_does_not_answer_gets_nobody():
    assert {choose("m", WEIGHTS, caller, lambda name: False) for caller in CALLERS} == {"m"}


def test_other_pipelines_have_other_canary_callers():
    first = [choose("a", {"a.v2": 50}, caller, _is_healthy) for caller in CALLERS]
    second = [choose("b", {"b.v2": 50}, caller, _is_healthy) for caller in CALLERS]
    both = sum(x == "a.v2" and y == "b.v2" for x, y in zip(first, second, strict=True))
    assert both == pytest.approx(1000, abs=150)
