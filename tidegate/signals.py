"""SIGTERM ends a verb as Ctrl-C does: everything on the way out is cleared up."""

import signal
from types import FrameType


def interrupt_on_sigterm() -> None:
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
