"""A time budget: what has not started by its end is left out and reported; what is still running,
because it takes longer than expected, is stopped."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# The largest share of the time for everything that one part may take when it has found too little
# within its own: what is left is enough for a short config search.
EXTENDED = 0.8
MIN_TIMER_S = 0.01  # a timer of 0 never fires


class OutOfTime(BaseException):
    """The budget ended. Not an Exception: code that catches those must not see a failure here."""


class Budget:
    """``seconds`` from its creation; ``hard_s`` (default: the same) is the time for everything:
    the limit of the conversion, without which there is nothing to measure, and what ``extend``
    takes from. ``now`` is for tests."""

    def __init__(
        self,
        seconds: float,
        now: Callable[[], float] = time.monotonic,
        hard_s: float | None = None,
    ) -> None:
        self.seconds, self._now = seconds, now
        self.hard_s = seconds if hard_s is None else hard_s
        self._started = now()

    @property
    def spent(self) -> float:
        return self._now() - self._started

    @property
    def left(self) -> float:
        return max(0.0, self.seconds - self.spent)

    def extend(self) -> None:
        """Take most of the time for everything, because there would be nothing to choose from."""
        self.seconds = max(self.seconds, EXTENDED * self.hard_s)

    def has_room(self, seconds: float, share: float = 1.0) -> bool:
        """Whether something that takes this long would end within this share of the budget."""
        return self.spent + seconds <= share * self.seconds

    def allows(self, share: float = 1.0) -> bool:
        """Whether this share of the budget is not used up."""
        return self.spent < share * self.seconds

    @contextmanager
    def enforced(self, conversion: bool = False, share: float = 1.0) -> Iterator[None]:
        """Raise OutOfTime at the end of this share of the budget (for a ``conversion`` at
        ``hard_s``), wherever the code inside is. Only the main thread can be interrupted; on others
        there is no limit."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        end = self.hard_s if conversion else share * self.seconds
        handler = signal.signal(signal.SIGALRM, _end)
        signal.setitimer(signal.ITIMER_REAL, max(MIN_TIMER_S, end - self.spent))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)


def _end(number: int, frame: FrameType | None) -> None:
    raise OutOfTime
