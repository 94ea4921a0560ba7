"""The last step of a classifier is exact, whatever the precision of its logits."""

from types import SimpleNamespace

import numpy as np
import pytest

from converters.proof.label_step import label_checks
from converters.proof.reference import Reference
from converters.proof.tolerance import tolerance
from ensembles.steps.top_labels import TopLabels

LABELS = [f"label {index}" for index in range(7)]


class Step:
    """The step in this process; faults are planted ``before`` it and ``after`` it."""

    def __init__(
        self, function, top_k, before=lambda x: x, after=lambda label, score: (label, score)
    ):
        self._label = TopLabels(LABELS, top_k, function)
        self._before, self._after = before, after

    def infer(self, model, tensors):
        assert model == "m_post"
        (tensor,) = tensors
        logits = np.frombuffer(tensor._get_content() if hasattr(tensor, "_get_content") else
                               tensor._raw_content, np.float32).reshape(tensor.shape())  # fmt: skip
        label, score = self._after(*self._label(self._before(logits)))
        return SimpleNamespace(as_numpy={"label": label, "score": score}.get)


def _checks(function, top_k, tmp_path, **faults):
    metadata = {"labels": LABELS, "function": function, "top_k": top_k}
    if top_k == len(LABELS):
        del metadata["top_k"]  # a text classifier returns all
    loose = tolerance("text-classification", "int8-static")
    reference = Reference("m", tmp_path, metadata, {}, loose)
    return label_checks(Step(function, top_k, **faults), reference)


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("top_k", [3, 7])
def test_the_step_as_it_is_passes(function, top_k, tmp_path):
    assert [check.line() for check in _checks(function, top_k, tmp_path) if not check.passed] == []


def _softmax(scores):
    powers = np.exp(scores)
    return powers / powers.sum(axis=1, keepdims=True)


FAULTS = {
    "temperature 1.05": {"before": lambda x: x / np.float32(1.05)},
    "temperature 1.0001": {"before": lambda x: x / np.float32(1.0001)},
    "negative numbers cut": {"before": lambda x: np.maximum(x, -2)},
    "scores in integers": {"after": lambda label, score: (label, score.astype(int))},
    "softmax twice": {"after": lambda label, score: (label, _softmax(score))},
    "one label fewer": {"after": lambda label, score: (label[:, :-1], score[:, :-1])},
    "the unlikeliest first": {"after": lambda label, score: (label[:, ::-1], score[:, ::-1])},
    "labels rotated": {"before": lambda x: np.roll(x, 1, axis=1)},
    "two labels swapped": {"before": lambda x: x[:, [0, 1, 2, 3, 4, 6, 5]]},
    "it cannot run": {"before": lambda x: x[:, :3]},
}


@pytest.mark.parametrize("function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_does_not_hide_in_the_tolerance_of_8_bits(function, fault, tmp_path):
    (check,) = _checks(function, len(LABELS), tmp_path, **FAULTS[fault])
    assert not check.passed
