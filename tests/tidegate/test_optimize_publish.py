"""What ``optimize --publish`` does where the conversion of its pick is refused."""

from pathlib import Path

import pytest

from converters.errors import ConversionError, ProofFailed
from tests.converters.optimize.test_optimize import findings, names
from tidegate.app import optimize
from tidegate.app.optimize_options import OptimizeOptions
from tidegate.app.paths import Paths

OPTIONS = OptimizeOptions(name="mini", publish=True)


def publish(monkeypatch, refused, error=ProofFailed):
    """The findings after publishing, the precisions tried, and the messages, where the conversion
    to each of ``refused`` fails."""
    tried, messages = [], []

    def convert(options, precision, paths, report):
        tried.append(precision)
        if precision in refused:
            raise error("mini does not give ...; nothing was published:\n  the graph: FAIL layers")

    monkeypatch.setattr(optimize, "_publish", convert)
    after = optimize._publish_fastest(OPTIONS, findings(), Paths(Path()), messages.append)
    return after, tried, messages


def test_the_pick_is_published(monkeypatch):
    after, tried, messages = publish(monkeypatch, refused=())
    assert (tried, messages) == (["int8-static"], [])
    assert after == findings()


def test_where_its_conversion_is_refused_the_next_one_is_published(monkeypatch):
    after, tried, messages = publish(monkeypatch, refused=("int8-static", "int8-per-row"))
    assert tried == ["int8-static", "int8-per-row", "int8-weight-only"]
    assert after.chosen.candidate.precision == "int8-weight-only"
    reason = "its conversion is refused: the graph: FAIL layers"
    assert messages == [f"mini: {precision}: {reason}" for precision in tried[:2]]
    refused = {row.candidate.precision: why for row, why in after.refused}
    assert reason in refused["int8-static"] and reason in refused["int8-per-row"]


def test_none_is_picked_if_every_conversion_is_refused(monkeypatch):
    every = ("int8-static", "int8-per-row", "int8-weight-only", "fp16", "fp32")
    after, tried, _ = publish(monkeypatch, refused=every)
    assert set(tried) == set(every) and after.chosen is None
    assert names(after.rows) == names(findings().rows)


def test_another_error_is_not_taken_for_a_refusal(monkeypatch):
    with pytest.raises(ConversionError, match="nothing was published"):
        publish(monkeypatch, refused=("int8-static",), error=ConversionError)
