"""Replicas that an operator has drained: no new request goes there, until the drain is lifted or
its time is over.

A file for each drained replica, in ``drains/`` of the state folder: all workers follow it. A drain
whose setter has died must not last, so each ends by itself and is set again to go on. It has the
boot of the machine and the end on the monotonic clock, which all processes share and nobody can
set: after a reboot, or in a copy of the folder on another machine, that time means nothing.
"""

import contextlib
import os
import time
from functools import cache
from pathlib import Path

from modelspec.files import atomic_write

FOLDER = "drains"
LEASE_S, LONGEST_S = 60.0, 3600.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Drains:
    """The drained replicas of one state folder, by HOST:GRPC_PORT."""

    def __init__(self, state_folder: Path) -> None:
        self._folder = state_folder / FOLDER

    def set(self, address: str, seconds: float) -> None:
        """Drain the replica for so many seconds from now (``LONGEST_S`` at most). OSError if that
        cannot be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self._folder / address, f"{boot_id()} {time.monotonic() + seconds}\n")

    def lift(self, address: str) -> None:
        """OSError if the file cannot be removed."""
        (self._folder / address).unlink(missing_ok=True)

    def current(self) -> frozenset[str]:
        """The replicas that are drained now. Files that nobody can need any more are removed."""
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 - one call, twice a second
        except OSError:
            return frozenset()
        return frozenset(name for name in names if self._is_drained(name))

    def _is_drained(self, address: str) -> bool:
        path = self._folder / address
        with contextlib.suppress(OSError, ValueError):
            boot, end = path.read_text().split()
            if boot == boot_id() and 0 < float(end) - time.monotonic() <= LONGEST_S:
                return True
        with contextlib.suppress(OSError):
            # Not at once: it may just be set again, here or on another machine with this folder.
            if time.time() - path.stat().st_mtime > LONGEST_S:
                path.unlink()
        return False


@cache
def boot_id() -> str:
    """The identifier of the machine's boot."""
    return _BOOT_ID.read_text().strip()
