"""A time budget: what is not begun before its end is left out, and said."""

import time
from collections.abc import Callable

# Of the whole, when there are no forms to be timed any more: writing and comparing may take this.
COMPARING = 0.6


class Budget:
    """``seconds`` from the moment it is made; ``now`` is for tests."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._now = seconds, now
        self._started = now()

    @property
    def spent(self) -> float:
        return self._now() - self._started

    @property
    def left(self) -> float:
        return max(0.0, self.seconds - self.spent)

    def has_room(self, seconds: float, share: float = 1.0) -> bool:
        """Whether something that takes so long would end within this share of the budget."""
        return self.spent + seconds <= share * self.seconds

    def allows(self, share: float = 1.0) -> bool:
        """Whether this share of the budget is not used up yet."""
        return self.spent < share * self.seconds
