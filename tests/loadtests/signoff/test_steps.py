"""Where Triton spends the time of a request: from two readings of its statistics."""

import itertools

import pytest

from loadtests.signoff.confidence import Outcome
from loadtests.signoff.procedure import PROFILES, Result, sign_off
from loadtests.signoff.slo import Limit, Slo
from loadtests.signoff.steps import (
    Step,
    Steps,
    Totals,
    read_statistics,
    steps_between,
    totals_by_model,
)
from tests.loadtests.signoff.simulated import Server

MS = 1_000_000
BEFORE = {
    "embed": Totals(100, 5 * MS, 700 * MS),
    "embed_pre": Totals(100, 1 * MS, 100 * MS),
    "embed_onnx": Totals(100, 4 * MS, 600 * MS),
    "other": Totals(9, 9 * MS, 9 * MS),
}
AFTER = {
    "embed": Totals(300, 5 * MS, 5000 * MS),
    "embed_pre": Totals(300, 21 * MS, 300 * MS),
    "embed_onnx": Totals(500, 404 * MS, 4600 * MS),  # asked twice by each request
    "other": Totals(99, 99 * MS, 99 * MS),
}


def test_each_step_of_an_ensemble_per_request_of_the_pipeline():
    pre, onnx = steps_between("embed", BEFORE, AFTER)
    assert (pre.model, pre.queue_s, pre.compute_s) == ("embed_pre", 0.0001, 0.001)
    assert (onnx.model, onnx.queue_s, onnx.compute_s) == ("embed_onnx", 0.002, 0.02)


def test_steps_stand_in_the_order_in_which_a_request_meets_them():
    done = {f"x{step}": Totals(1, MS, MS) for step in ("", "_onnx", "_post", "_pre.g2")}
    steps = steps_between("x", {}, done)
    assert [step.model for step in steps] == ["x_pre.g2", "x_onnx", "x_post"]


def test_a_model_without_steps_is_its_own():
    assert steps_between("other", BEFORE, AFTER) == (Step("other", 0.001, 0.001),)


def test_a_server_that_was_started_again_counts_from_nothing():
    after = {"other": Totals(5, 10 * MS, 20 * MS)}
    assert steps_between("other", BEFORE, after) == (Step("other", 0.002, 0.004),)


def test_versions_of_a_model_are_counted_together():
    entry = {"name": "a", "inference_stats": {"success": {"count": 2}, "queue": {"ns": "5"}}}
    assert totals_by_model([entry, entry]) == {"a": Totals(4, 10, 0)}


def test_nothing_is_made_up_without_statistics():
    assert steps_between("unknown", BEFORE, AFTER) == ()
    assert steps_between("embed", BEFORE, BEFORE) == ()
    steps = Steps(lambda: None)
    steps.restart()
    assert steps.so_far("embed") == ()
    assert read_statistics("http://127.0.0.1:9", "") is None


def test_they_are_of_the_target_alone():
    """What the search asked of the servers is not in them."""
    readings = itertools.chain([BEFORE], itertools.repeat(AFTER))
    server = Server()
    result = Result(Slo("embed", 50.0, (Limit("", 0.9, 0.1),), errors=0.01))
    server.steps = Steps(lambda: next(readings))
    sign_off(result, PROFILES["smoke"], server.load, server.memory, server.steps, 100.0)
    assert result.outcome is Outcome.PASS, result.lines
    assert [step.model for step in result.steps] == ["embed_pre", "embed_onnx"]
    assert result.steps[0].queue_s == pytest.approx(0.0001)
