"""The rule against MLPerf's own figures, and against servers whose truth is known."""

import numpy as np
import pytest

from loadtests.signoff.confidence import Outcome, requests_needed, verdict


# As LoadGen 6.0.17 (mlcommons-loadgen) says itself: tests/loadtests/signoff/loadgen_counts.py, with
# MISSES, 50 or more QUERIES that are too few, and PERCENTILE; `... 100 110 0.99` prints 12571.
@pytest.mark.parametrize(
    ("percentile", "misses", "expected"),
    [
        (0.99, 0, 459),
        (0.99, 1, 662),
        (0.99, 2, 838),
        (0.99, 5, 1_307),
        (0.99, 10, 2_010),
        (0.99, 20, 3_304),
        (0.99, 50, 6_898),
        (0.99, 100, 12_571),
        (0.95, 0, 90),
        (0.95, 10, 398),
        (0.90, 0, 44),
        (0.90, 10, 197),
        (0.97, 3, 332),
        (0.999, 1, 6_636),
    ],
)
def test_the_numbers_are_those_of_mlperfs_loadgen(percentile, misses, expected):
    assert requests_needed(misses, percentile) == expected


def test_a_line_passes_with_enough_requests_and_not_with_one_fewer():
    assert verdict(459, 0, 0.99).outcome is Outcome.PASS
    undecided = verdict(458, 0, 0.99)
    assert (undecided.outcome, undecided.more) == (Outcome.UNDECIDED, 1)
    assert undecided.why == "0 of 458 missed it; 1 more needed"
    assert verdict(12_571, 100, 0.99).why == "100 of 12571 missed it (99% confidence)"


def test_what_more_is_needed_is_at_the_rate_so_far():
    undecided = verdict(1000, 5, 0.99)
    assert undecided.outcome is Outcome.UNDECIDED
    total = 1000 + undecided.more
    assert verdict(total, round(0.005 * total), 0.99).outcome is Outcome.PASS
    assert verdict(1000, 10, 0.99).more is None  # exactly as often as it may
    assert "too close" in verdict(1000, 10, 0.99).why
    assert verdict(0, 0, 0.99).more == 459


def test_a_line_fails_only_if_so_many_misses_are_improbable():
    assert verdict(1000, 15, 0.99).outcome is Outcome.UNDECIDED
    assert verdict(1000, 20, 0.99).outcome is Outcome.FAIL
    assert verdict(1, 1, 0.95).outcome is Outcome.UNDECIDED
    assert verdict(3, 3, 0.95).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("requests", "misses", "percentile"), [(1, 2, 0.99), (5, -1, 0.9), (1, 1, 1.0)]
)
def test_what_cannot_be_is_refused(requests, misses, percentile):
    with pytest.raises(ValueError, match=r"cannot|between"):
        verdict(requests, misses, percentile)


def _sign(generator, share: float, looks: int = 4) -> Outcome:
    """The verdict on a server of whose requests ``share`` miss a p99: more are sent while it is
    undecided, up to so many times."""
    requests = misses = 0
    more = 2_010
    for _ in range(looks):
        requests += more
        misses += int(generator.binomial(more, share))
        said = verdict(requests, misses, 0.99, looks=looks)
        if said.outcome is not Outcome.UNDECIDED:
            return said.outcome
        more = min(said.more or 10_000, 20_000)
    return Outcome.UNDECIDED


@pytest.mark.parametrize(
    ("truth", "right", "wrong"),
    [
        # The p99 of a lognormal latency (sigma 0.5) at 0.9, 1.0 and 1.1 of the limit.
        (0.9, Outcome.PASS, Outcome.FAIL),
        (1.0, Outcome.UNDECIDED, None),
        (1.1, Outcome.FAIL, Outcome.PASS),
    ],
)
def test_two_hundred_servers_whose_truth_is_known(truth, right, wrong):
    generator = np.random.default_rng(7)
    latencies = generator.lognormal(0.0, 0.5, 1_000_000)
    limit = np.quantile(latencies, 0.99) / truth
    share = float((latencies > limit).mean())
    outcomes = [_sign(generator, share) for _ in range(200)]
    if wrong:
        assert outcomes.count(wrong) <= 2  # 1 %
        assert outcomes.count(right) >= 0.9 * len(outcomes)
    else:
        assert outcomes.count(Outcome.PASS) <= 2
        assert outcomes.count(Outcome.FAIL) <= 2
