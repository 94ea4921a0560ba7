"""A precision whose limits could not tell a broken model from a correct one is not offered: here
they are blind by construction, for each precision."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from converters.cache import cache_root
from converters.conversion import ConversionOptions, convert
from converters.errors import ProofFailed
from converters.proof import tolerance
from converters.proof.parity import score_spread_checks
from converters.proof.self_test import answers_self_test
from converters.proof.tolerance import LayerLimits, Shares
from converters.task import ConversionRequest
from converters.tasks.tensors.task import Tensors
from tests.converters.proof.two_layers import save_two_layers

BLIND = Shares(inf, inf, inf, inf, 1.0)
ROUNDED = ["fp16", "int8-weight-only", "int8-static", "int8-per-row", "int8-dynamic"]


@pytest.fixture
def task(tmp_path, monkeypatch) -> Tensors:
    """Two layers, x [b, 16] -> y [b, 5], converted into a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(2)
    path = save_two_layers(tmp_path / "m.onnx", random)
    samples = tmp_path / "samples.npz"
    np.savez(samples, x=random.standard_normal((64, 16)).astype(np.float32))
    return Tensors(ConversionRequest("t", str(path), samples))


@pytest.mark.parametrize("precision", ROUNDED)
def test_it_is_refused_and_leaves_no_graph(precision, task, monkeypatch):
    limits = replace(
        tolerance.LIMITS["tensors", precision][0],
        difference=inf,
        mean=inf,
        cosine=-2.0,
        agreement=0.0,
        invariance=inf,
    )
    with monkeypatch.context() as blind:
        blind.setitem(tolerance.LIMITS, ("tensors", precision), (limits, ""))
        blind.setitem(tolerance.SHARES, precision, (BLIND, ""))
        blind.setitem(tolerance.LAYERS, precision, (LayerLimits(inf, inf, inf, inf), ""))
        with pytest.raises(ProofFailed) as refused:
            convert(task, ConversionOptions(precision), lambda text: None)
    message = str(refused.value)
    assert "self-test: planted faults that would pass" in message
    # The others look like another element's numbers, or have other weights: that has no limit.
    for fault in ("constant", "scaled", "zeroed", "shifted"):
        assert fault in message.partition("would pass: ")[2].partition(": these limits")[0]
    # The original's answers stay; the graph that could not be proved does not.
    assert len(list((cache_root() / "conversions").iterdir())) == 1
    assert convert(task, ConversionOptions(precision), lambda text: None).record.passed


@pytest.mark.parametrize("function", ["none", "softmax", "sigmoid"])
def test_blind_limits_fail_the_self_test_of_every_function(function):
    scores = np.random.default_rng(0).uniform(0.05, 0.95, (24, 4)).astype(np.float32)
    if function == "softmax":
        scores /= scores.sum(axis=1, keepdims=True)
    rows = [""] * len(scores)
    (check,) = answers_self_test(
        lambda faulty: score_spread_checks("t", faulty, scores, function, BLIND, rows),
        scores,
        function,
    )
    assert not check.passed
    assert "these limits cannot detect them" in check.worst
