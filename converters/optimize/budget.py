"""A time budget: what is not begun before its end is left out, and said; what is begun and takes
longer than anybody knew is ended with it."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Of the whole, when there are no forms to be timed any more: writing and comparing may take this.
COMPARING = 0.6
AT_LEAST_S = 0.01  # a timer of 0 never rings


class OutOfTime(BaseException):
    """The budget ended. No Exception: what catches all of these must not take it for a failure."""


class Budget:
    """``seconds`` from the moment it is made; ``hard_s`` (the same where it is not said) is what
    the conversion, without which there is nothing to measure, may take. ``now`` is for tests."""

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

    def has_room(self, seconds: float, share: float = 1.0) -> bool:
        """Whether something that takes so long would end within this share of the budget."""
        return self.spent + seconds <= share * self.seconds

    def allows(self, share: float = 1.0) -> bool:
        """Whether this share of the budget is not used up yet."""
        return self.spent < share * self.seconds

    @contextmanager
    def enforced(self, conversion: bool = False) -> Iterator[None]:
        """OutOfTime at the end of the budget (of a ``conversion``: at ``hard_s``), wherever the
        code inside is. Only the main thread can be interrupted: elsewhere it takes the time that it
        takes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        end = self.hard_s if conversion else self.seconds
        before = signal.signal(signal.SIGALRM, _end)
        signal.setitimer(signal.ITIMER_REAL, max(AT_LEAST_S, end - self.spent))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _end(number: int, frame: FrameType | None) -> None:
    raise OutOfTime
