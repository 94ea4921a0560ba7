"""Shared-memory regions of Triton's Python backend: named by us, so that we can clean them up.

A killed server leaves its regions in /dev/shm. Ours are called ``tidegate_PID_...`` after the
process that started the server, so what belongs to a dead owner can be told apart.
"""

import os
import secrets
from pathlib import Path

FOLDER = Path("/dev/shm")  # noqa: S108 - not a temporary file: it is where POSIX keeps the regions
PREFIX = "tidegate_"


def new_prefix() -> str:
    return f"{PREFIX}{os.getpid()}_{secrets.token_hex(4)}_"


def remove_regions(prefix: str) -> None:
    """Remove the regions of one server; call it only when that server is gone."""
    for region in FOLDER.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def remove_orphans() -> None:
    """Remove the regions whose owner no longer runs (it was killed with -9)."""
    for region in FOLDER.glob(f"{PREFIX}*"):
        owner = region.name.removeprefix(PREFIX).partition("_")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            region.unlink(missing_ok=True)
