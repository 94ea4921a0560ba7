"""Replicas that an operator has drained: no new request goes there, until the drain is lifted or
its time is over.

A file for each drained replica, in ``drains/`` of the state folder: all workers follow it. A drain
whose setter has died must not last, so each ends by itself and is set again to go on.
"""

import contextlib
import os
import time
from pathlib import Path

from modelspec.files import atomic_write

FOLDER = "drains"
LEASE_S, LONGEST_S = 60.0, 3600.0


class Drains:
    """The drained replicas of one state folder, by HOST:GRPC_PORT."""

    def __init__(self, state_folder: Path) -> None:
        self._folder = state_folder / FOLDER

    def set(self, address: str, seconds: float) -> None:
        """Drain the replica for so many seconds from now (``LONGEST_S`` at most). OSError if that
        cannot be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # On the clock of the machine, which all processes share and nobody can set.
        atomic_write(self._folder / address, f"{time.monotonic() + seconds}\n")

    def lift(self, address: str) -> None:
        """OSError if the file cannot be removed."""
        (self._folder / address).unlink(missing_ok=True)

    def current(self) -> frozenset[str]:
        """The replicas that are drained now."""
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 - one call, twice a second
        except OSError:
            return frozenset()
        return frozenset(name for name in names if self._is_drained(name))

    def _is_drained(self, address: str) -> bool:
        with contextlib.suppress(OSError, ValueError):
            left_s = float((self._folder / address).read_text()) - time.monotonic()
            # One from before the machine was restarted may seem to last for days.
            return 0 < left_s <= LONGEST_S
        return False
