"""The scalability law: known parameters come back, with an interval that has them."""

import numpy as np
import pytest

from loadtests.signoff.scaling import fit


def _rates(replicas, rate, contention, coherency, noise=0.0, seed=0):
    n = np.asarray(replicas, float)
    exact = rate * n / (1 + contention * (n - 1) + coherency * n * (n - 1))
    return exact * np.random.default_rng(seed).lognormal(0, noise, n.size)


def test_exact_measurements_give_the_parameters_back():
    replicas = [1, 2, 4, 8]
    scaling = fit(replicas, _rates(replicas, 100, 0.05, 0.002))
    assert (scaling.rate, scaling.contention, scaling.coherency) == pytest.approx(
        (100, 0.05, 0.002), rel=1e-3
    )
    assert scaling.at(8) == pytest.approx(_rates([8], 100, 0.05, 0.002)[0])
    assert not scaling.is_extrapolated(16)
    assert scaling.is_extrapolated(17)


def test_the_interval_has_the_truth():
    replicas = [1, 2, 3, 4, 6, 8] * 3
    inside = 0
    for seed in range(20):
        scaling = fit(replicas, _rates(replicas, 100, 0.08, 0.001, noise=0.05, seed=seed))
        low, high = scaling.interval(12)
        inside += low <= _rates([12], 100, 0.08, 0.001)[0] <= high
    assert inside >= 15  # of 18 that are expected


def test_replicas_for_a_rate_and_none_where_more_do_not_help():
    replicas = [1, 2, 4, 8]
    linear = fit(replicas, [100, 200, 400, 800])
    assert linear.replicas_for(990) == 10
    assert linear.replicas_for(1) == 1
    retrograde = fit(replicas, _rates(replicas, 100, 0.1, 0.02))
    assert retrograde.replicas_for(150) == 2
    assert retrograde.replicas_for(100_000) is None


def test_little_is_fitted_from_little():
    assert fit([1], [50]).at(4) == pytest.approx(200)
    two = fit([1, 2], [100, 180])
    assert two.coherency == 0
    assert two.at(2) == pytest.approx(180)
    assert two.interval(2) == (two.at(2), two.at(2))


@pytest.mark.parametrize(("replicas", "rates"), [([], []), ([1, 2], [1]), ([1], [0]), ([0], [5])])
def test_what_is_no_measurement_is_refused(replicas, rates):
    with pytest.raises(ValueError, match="each measurement"):
        fit(replicas, rates)
