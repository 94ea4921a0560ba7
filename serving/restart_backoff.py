"""How often a sick model is treated: with pauses that grow, and seldom in the end."""

import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
ATTEMPTS = 5
LATER_S = 600.0  # one that was given up is tried again so often: what hindered may have passed
WELL_AFTER_S = 60.0  # without trouble for so long, the next trouble counts from one again


@dataclass
class RestartBackoff:
    """One model in trouble. ``mark`` is what was published when the trouble began: another
    publication is another patient."""

    model: str
    mark: int
    attempts: int = 0
    not_before: float = 0.0
    last_trouble: float = 0.0
    is_given_up: bool = False
    hindrance: str = ""  # of ours, not of the model: what kept it from being treated, as told

    def is_due(self, clock: Callable[[], float] = time.monotonic) -> bool:
        """Whether to treat it now."""
        return clock() >= self.not_before

    def is_well(self, clock: Callable[[], float] = time.monotonic) -> bool:
        return clock() - self.last_trouble > WELL_AFTER_S

    def begin(self, clock: Callable[[], float] = time.monotonic) -> None:
        """One more attempt; the next may not come before its pause is over."""
        self.last_trouble = clock()
        pause_s = min(FIRST_PAUSE_S * 2 ** min(self.attempts, 10), LONGEST_PAUSE_S)
        self.not_before = self.last_trouble + (LATER_S if self.is_given_up else pause_s)
        self.attempts += 1

    def give_up(self) -> bool:
        """Whether that was the last attempt before a long pause."""
        self.is_given_up = self.is_given_up or self.attempts >= ATTEMPTS
        if self.is_given_up:
            self.not_before = self.last_trouble + LATER_S
        return self.is_given_up
