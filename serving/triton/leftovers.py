"""What a server leaves behind when it is killed: shared-memory regions and its backend directory.

Both are named ``tidegate_PID_...`` after the process that started the server, so that what belongs
to a dead owner can be recognized and removed.
"""

import contextlib
import os
import secrets
import shutil
from pathlib import Path

FOLDER = Path("/dev/shm")  # noqa: S108 - not a temporary file: it is where POSIX keeps the regions
PREFIX = "tidegate_"
BUILD = "build"  # in a home: where backend directories are put together


def new_prefix() -> str:
    return f"{PREFIX}{os.getpid()}_{secrets.token_hex(4)}_"


def remove(prefix: str) -> None:
    """Remove the shared memory that one server left; call this only once that server is gone."""
    for region in FOLDER.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def remove_backends(prefix: str, build_folder: Path) -> None:
    """Remove its backend directory; call this when that server will not be started again."""
    for folder in build_folder.glob(f"{prefix}*"):
        shutil.rmtree(folder, ignore_errors=True)


def remove_orphans(build_folder: Path) -> None:
    """Remove what belongs to owners that no longer run (killed with -9)."""
    for region in _orphans(FOLDER):
        with contextlib.suppress(OSError):  # another user's is not ours to remove
            region.unlink(missing_ok=True)
    for folder in _orphans(build_folder):
        shutil.rmtree(folder, ignore_errors=True)


def _orphans(folder: Path) -> list[Path]:
    orphans = []
    for path in folder.glob(f"{PREFIX}*"):
        owner = path.name.removeprefix(PREFIX).partition("_")[0]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            orphans.append(path)
    return orphans
