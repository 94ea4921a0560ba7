"""SIGTERM ends a verb as Ctrl-C does, so that everything is cleaned up on the way out."""

import signal
from types import FrameType


def interrupt_on_sigterm() -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    # A shell starts background jobs with SIGINT ignored; a SIGINT that is sent is meant.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
