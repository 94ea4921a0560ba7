"""SIGTERM ends a verb as Ctrl-C does: everything on the way out is cleared up."""

import signal
from types import FrameType


def interrupt_on_sigterm() -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    # A shell starts what runs in its background with SIGINT ignored; who sends one means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
