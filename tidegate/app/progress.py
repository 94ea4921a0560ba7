"""What work that takes long reports to."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

# Called with one line for each step, such as "converting mood ...".
Progress = Callable[[str], None]

# The file that a process which works for another one (``tidegate up``) writes its steps to.
PHASE_FILE = "TIDEGATE_PHASE_FILE"


def note_phase(text: str) -> None:
    """Let the process that started this one know what is done now."""
    path = os.environ.get(PHASE_FILE)
    if path:
        with contextlib.suppress(OSError):  # a full disk: the work goes on
            Path(path).write_text(text, encoding="utf-8")


def noted_phase(path: Path) -> str:
    """What a process that was started with this ``PHASE_FILE`` does now; '' if it has not said
    so."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
