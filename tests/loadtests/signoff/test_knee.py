"""The search for the highest rate, against servers whose knee is known."""

import numpy as np
import pytest

from loadtests.signoff.knee import search


def _last(knees):
    *_, last = knees
    return last


@pytest.mark.parametrize("truth", [3.0, 47.0, 50.0, 444.0])
@pytest.mark.parametrize("start", [1.0, 50.0, 1000.0])
def test_it_ends_within_five_percent_below_the_truth(truth, start):
    knee = _last(search(start, lambda rate: rate <= truth))
    assert knee.held <= truth < knee.missed
    assert knee.missed - knee.held <= 0.05 * knee.held
    assert len(knee.trials) <= 16


def test_a_disturbed_window_now_and_then_does_not_move_it():
    generator, found = np.random.default_rng(0), []
    for _ in range(50):
        knee = _last(search(20, lambda rate: rate <= 100 and generator.random() > 0.05))
        assert knee.held <= 100  # never too high
        found.append(knee.held)
    assert sum(held > 90 for held in found) >= 45, found


def test_the_majority_of_up_to_three_windows_counts():
    said = iter([True, False, True, False, False])
    knee = next(search(10, lambda rate: next(said)))
    assert knee.trials[0].windows == (True, False, True)
    assert knee.held == 10


def test_a_server_that_holds_nothing_and_one_that_holds_all():
    nothing = _last(search(10, lambda rate: False))
    assert nothing.held == 0.0
    assert nothing.trials[-1].rate < 0.2
    everything = _last(search(10, lambda rate: True, highest=300))
    assert (everything.held, everything.missed) == (300, None)


def test_a_start_out_of_range_is_refused():
    with pytest.raises(ValueError, match="must start between"):
        next(search(10, lambda rate: True, highest=5))
