"""A time budget: what is not begun before its end is left out, and said."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

# Of the whole, when there are no forms to be timed any more: writing and comparing may take this.
COMPARING = 0.6


@dataclass(frozen=True)
class Budget:
    """``seconds`` from the moment it is made; ``now`` is for tests."""

    seconds: float
    now: Callable[[], float] = time.monotonic
    started: float = field(default=-1.0)

    def __post_init__(self) -> None:
        if self.started < 0:
            object.__setattr__(self, "started", self.now())

    @property
    def spent(self) -> float:
        return self.now() - self.started

    @property
    def left(self) -> float:
        return self.seconds - self.spent

    def allows(self, share: float = 1.0) -> bool:
        """Whether this share of the budget is not used up yet."""
        return self.spent < share * self.seconds
