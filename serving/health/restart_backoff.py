"""How often an unhealthy model is restarted: with growing pauses, and rarely in the end."""

import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
ATTEMPTS = 5
LATER_S = 600.0  # how often a model that was given up is tried again: the cause may have passed
BUSY_PAUSE_S = 2.0  # until the next look whether a publication is over
WELL_AFTER_S = 60.0  # healthy for this long: attempts are counted from zero again


@dataclass
class RestartBackoff:
    """The restarts of one unhealthy model. ``mark`` identifies what was published when the trouble
    began: after another publication, a new RestartBackoff begins."""

    model: str
    mark: int
    attempts: int = 0
    not_before: float = 0.0
    healthy_since: float | None = None  # None: it is unhealthy, or being restarted
    is_given_up: bool = False
    hindrance: str = ""  # what kept us from restarting it (not the model's fault), as reported

    def is_due(self, clock: Callable[[], float] = time.monotonic) -> bool:
        """Whether to restart it now."""
        return clock() >= self.not_before

    def is_well(self, clock: Callable[[], float] = time.monotonic) -> bool:
        """Whether it was healthy for so long that new trouble is another trouble."""
        return self.healthy_since is not None and clock() - self.healthy_since > WELL_AFTER_S

    def recovered(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.healthy_since = clock()

    def begin(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Count an attempt; the next one may not begin before the pause is over."""
        self.attempts += 1
        self._pause(clock())

    def put_off(self, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """What was begun did not take place, and that is not the model's fault: it does not count,
        and is due again after ``pause_s``, also for a model that was given up."""
        self.attempts -= 1
        self.not_before = clock() + pause_s

    def fail(self, clock: Callable[[], float] = time.monotonic) -> bool:
        """The attempt has failed, and the pause begins now: a load may take longer than the pause.
        Returns whether that was the last attempt before a long pause."""
        self.is_given_up = self.is_given_up or self.attempts >= ATTEMPTS
        self._pause(clock())
        return self.is_given_up

    def _pause(self, now: float) -> None:
        doublings = min(max(self.attempts - 1, 0), 10)
        pause_s = min(FIRST_PAUSE_S * 2**doublings, LONGEST_PAUSE_S)
        self.not_before = now + (LATER_S if self.is_given_up else pause_s)
