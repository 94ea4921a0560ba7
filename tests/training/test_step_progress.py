"""How far a training is, and how long it still takes."""

import pytest

from training import step_progress
from training.step_progress import REPORT_EVERY, StepProgress


@pytest.fixture
def clock(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(step_progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_every_so_many_batches_and_at_an_epochs_end_it_says_how_long_it_still_takes(clock):
    lines, of = [], REPORT_EVERY + 10
    progress = StepProgress(2, 2 * of, lines.append)
    for epoch, loss in ((1, 0.5), (2, 0.25)):
        for number in range(1, of + 1):
            clock[0] += 2
            progress.step(epoch, number, of, loss)
    assert lines == [
        "epoch 1 of 2, 50 of 60 batches: loss 0.500, 100 s, about 140 s left",
        "epoch 1 of 2, 60 of 60 batches: loss 0.500, 120 s, about 120 s left",
        "epoch 2 of 2, 50 of 60 batches: loss 0.250, 220 s, about 20 s left",
        "epoch 2 of 2, 60 of 60 batches: loss 0.250, 240 s, about 0 s left",
    ]
