"""Contenders run in turn, ratios compare neighbouring passes, medians count."""

import pytest

from loadtests.bench.passes import Rounds, alternate
from loadtests.bench.wrk import Figures


def _figures(rps, p50_ms=1.0):
    return Figures(rps, p50_ms, 2.0, 3.0)


def test_every_other_round_runs_in_reverse():
    order = []

    def contender(name):
        return lambda: order.append(name) or _figures(1)

    rounds = alternate({name: contender(name) for name in "abc"}, 3)
    assert "".join(order) == "abccbaabc"
    assert {name: len(passes) for name, passes in rounds.figures.items()} == {
        "a": 3,
        "b": 3,
        "c": 3,
    }


def test_a_ratio_compares_passes_of_one_round():
    """The machine halves in the second round and recovers: the ratio does not move."""
    rounds = Rounds(
        {
            "ours": [_figures(30), _figures(15), _figures(31)],
            "direct": [_figures(100), _figures(50), _figures(100)],
        }
    )
    assert rounds.ratio("ours", "direct") == pytest.approx(0.30)
    assert rounds.spread("ours", "direct") == pytest.approx((0.30, 0.31))
    assert rounds.ratio("direct", "direct") == 1


def test_each_figure_has_its_own_median():
    rounds = Rounds({"a": [_figures(1, 9.0), _figures(3, 7.0), _figures(2, 8.0)]})
    assert rounds.median("a") == Figures(2, 8.0, 2.0, 3.0)
