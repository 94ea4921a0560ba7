"""How often an unhealthy model is restarted: with growing pauses, and rarely in the end."""

import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
ATTEMPTS = 5
LATER_S = 600.0  # how often a model that was given up is tried again: the cause may have passed
WELL_AFTER_S = 60.0  # after this long without trouble, attempts are counted from zero again


@dataclass
class RestartBackoff:
    """The restarts of one unhealthy model. ``mark`` identifies what was published when the trouble
    began: after another publication, a new RestartBackoff begins."""

    model: str
    mark: int
    attempts: int = 0
    not_before: float = 0.0
    last_trouble: float = 0.0
    is_given_up: bool = False
    hindrance: str = ""  # what kept us from restarting it (not the model's fault), as reported

    def is_due(self, clock: Callable[[], float] = time.monotonic) -> bool:
        """Whether to restart it now."""
        return clock() >= self.not_before

    def is_well(self, clock: Callable[[], float] = time.monotonic) -> bool:
        return clock() - self.last_trouble > WELL_AFTER_S

    def begin(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Count an attempt; the next one may not begin before the pause is over."""
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
