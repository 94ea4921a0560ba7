"""What a training reports while it runs."""

import time

from training.recipe import Progress

REPORT_EVERY = 50  # batches


class StepProgress:
    """Of so many epochs and batches in all: call ``step`` after each batch."""

    def __init__(self, epochs: int, batches: int, report: Progress) -> None:
        self._epochs, self._batches, self._report = epochs, batches, report
        self._began, self._done = time.monotonic(), 0
        self._epoch, self._loss = 0, 0.0  # the loss of that epoch's batches together

    def step(self, epoch: int, number: int, of: int, loss: float) -> None:
        """Batch ``number`` of the ``of`` batches of this epoch is done, both from 1 on."""
        if epoch != self._epoch:
            self._epoch, self._loss = epoch, 0.0
        self._done += 1
        self._loss += loss
        if number % REPORT_EVERY and number != of:
            return
        taken_s = time.monotonic() - self._began
        left_s = taken_s / self._done * (self._batches - self._done)
        self._report(
            f"epoch {epoch} of {self._epochs}, {number} of {of} batches: "
            f"loss {self._loss / number:.3f}, {taken_s:.0f} s, about {left_s:.0f} s left"
        )
