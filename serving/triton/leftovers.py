"""What a server leaves behind when it is killed: shared-memory regions and its backend directory.

Both are named ``tidegate_PID_TOKEN_...`` after the process that started the server. In the folder
of each is a file that this process holds, by which it is known to live in any container.
"""

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import IO

from modelspec.held import held_file, is_held

FOLDER = Path("/dev/shm")  # noqa: S108 - not a temporary file: it is where POSIX keeps the regions
PREFIX = "tidegate_"
BUILD = "build"  # in a home: where backend directories are put together
_OWNER = "owner"  # the end of the name of the file that is held
_PREFIX = re.compile(rf"{PREFIX}(?P<pid>\d+)_[^_]+_")


def new_prefix() -> str:
    return f"{PREFIX}{os.getpid()}_{secrets.token_hex(4)}_"


def hold(prefix: str, build_folder: Path) -> list[IO[bytes]]:
    """Mark what has this prefix as a live owner's until the files are closed. Where that cannot be
    written, the owner's pid decides."""
    files = []
    for folder in (FOLDER, build_folder):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            files.append(held_file(folder / f"{prefix}{_OWNER}"))
    return files


def remove(prefix: str) -> None:
    """Remove the shared memory that one server left; call this only once that server is gone."""
    for region in FOLDER.glob(f"{prefix}*"):
        if region.name != f"{prefix}{_OWNER}":  # it may be started again
            region.unlink(missing_ok=True)


def remove_backends(prefix: str, build_folder: Path) -> None:
    """Remove its backend directory; call this when that server will not be started again."""
    for folder in build_folder.glob(f"{prefix}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for parent in (FOLDER, build_folder):
        (parent / f"{prefix}{_OWNER}").unlink(missing_ok=True)


def remove_orphans(build_folder: Path) -> None:
    """Remove what belongs to owners that no longer run (killed with -9)."""
    for path in (*_orphans(FOLDER), *_orphans(build_folder)):
        with contextlib.suppress(OSError):  # another user's is not ours to remove
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _orphans(folder: Path) -> list[Path]:
    """Those of each owner, the file that told whether it lives last."""
    names = sorted(folder.glob(f"{PREFIX}*"), key=lambda path: path.name.endswith(f"_{_OWNER}"))
    is_alive: dict[str, bool] = {}
    orphans = []
    for path in names:
        if prefix := _PREFIX.match(path.name):
            if prefix[0] not in is_alive:
                is_alive[prefix[0]] = _is_alive(folder / f"{prefix[0]}{_OWNER}", prefix["pid"])
            if not is_alive[prefix[0]]:
                orphans.append(path)
    return orphans


def _is_alive(owner: Path, pid: str) -> bool:
    return is_held(owner) if owner.exists() else Path(f"/proc/{pid}").exists()
