"""Contenders run in turn, and ratios compare passes that were neighbours."""

import math

import numpy as np
import pytest

from modelspec.measuring import alternate, in_turn, mean_ratio, median_ratio, ratios


def test_every_other_pass_is_reversed():
    order = []
    contenders = {name: (lambda name=name: order.append(name) or name) for name in "abc"}
    results = alternate(contenders, 3)
    assert "".join(order) == "abccbaabc"
    assert results == {name: [name] * 3 for name in "abc"}
    assert in_turn("abc", 1) == ["c", "b", "a"]


def test_a_machine_that_halves_for_one_pass_moves_no_ratio():
    ours, reference = [30, 15, 31], [100, 50, 100]
    assert ratios(ours, reference) == pytest.approx([0.3, 0.3, 0.31])
    assert median_ratio(ours, reference) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="shorter"):
        ratios([1, 2], [1])


def test_the_mean_of_ratios_is_geometric_and_knows_its_error():
    mean, error = mean_ratio([2, 8, 4], [1, 1, 1])
    assert mean == pytest.approx(4)
    logs = np.log([2, 8, 4])
    assert error == pytest.approx(np.std(logs, ddof=1) / math.sqrt(3))
