"""When a warm-up is over."""

import numpy as np
import pytest

from loadtests.signoff.steady import steady_from


def _latencies(warm_up, slower=3.0, count=1000, seed=0):
    values = np.random.default_rng(seed).lognormal(-4, 0.3, count)
    values[:warm_up] *= np.linspace(slower, 1.5, warm_up)
    return values


@pytest.mark.parametrize("warm_up", [50, 150, 300])
def test_the_warm_up_is_left_out_and_little_more(warm_up):
    for seed in range(10):
        first = steady_from(_latencies(warm_up, seed=seed))
        assert 0.8 * warm_up <= first <= warm_up + 100


def test_of_what_is_steady_little_is_left_out():
    assert all(steady_from(_latencies(0, seed=seed)) <= 300 for seed in range(10))


def test_one_slow_answer_is_no_change():
    values = _latencies(0)
    values[500] = 5.0
    assert steady_from(values) <= 300


def test_what_gets_slower_to_the_end_is_never_steady():
    assert steady_from(np.geomspace(0.01, 1.0, 1000)) == 1000


def test_too_few_to_tell():
    assert steady_from([]) == 0
    assert steady_from([0.01] * 12) == 12
