"""Contenders run in turn, ratios compare neighbouring passes, medians count."""

import pytest

from loadtests.bench.passes import Ratio, Rounds, alternate
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
    ratio = rounds.throughput("ours", "direct")
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((0.30, 0.30, 0.31))
    assert rounds.throughput("direct", "direct") == Ratio(1, 1, 1)


def test_efficiency_compares_the_cpu_of_all_processes_together():
    def spent(**cpu_us):
        return Figures(100, 1.0, 2.0, 3.0, cpu_us)

    rounds = Rounds(
        {
            "ours": [spent(gateway=100, tritonserver=100), spent(gateway=120, tritonserver=80)],
            "direct": [spent(tritonserver=50), spent(tritonserver=50)],
            "unknown": [_figures(1), _figures(1)],
        }
    )
    assert rounds.efficiency("ours", "direct") == Ratio(0.25, 0.25, 0.25)
    assert rounds.efficiency("unknown", "direct") is None
    assert rounds.median("ours").cpu_us == {"gateway": 110, "tritonserver": 90}


def test_many_rounds_make_the_band_narrower_than_the_range():
    disturbed = [0.1, 0.40, 0.41, 0.42, 0.43, 0.44, 0.45, 0.9]
    assert Ratio.of(disturbed) == Ratio(pytest.approx(0.425), 0.40, 0.45)
    assert Ratio.of([0.4, 0.1, 0.9]) == Ratio(0.4, 0.1, 0.9)
    assert Ratio.of([0.5]) == Ratio(0.5, 0.5, 0.5)


def test_each_figure_has_its_own_median():
    rounds = Rounds({"a": [_figures(1, 9.0), _figures(3, 7.0), _figures(2, 8.0)]})
    assert rounds.median("a") == Figures(2, 8.0, 2.0, 3.0)
