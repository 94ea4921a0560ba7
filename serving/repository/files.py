"""Files that must survive a crash: fsynced, placed by one rename, hashed."""

import os
import secrets
import shutil
from pathlib import Path

from modelspec.files import atomic_write, file_sha256, sync_folder
from modelspec.layout import staging_folder


def owned_path(repository: Path, what: str) -> Path:
    """A new path in the staging folder whose name carries its owner's pid, so that leftovers of a
    killed process can be told from work in progress. No model's name has a "+"."""
    return staging_folder(repository) / f"{owned_prefix(what)}{secrets.token_hex(4)}"


def owned_prefix(what: str) -> str:
    return f"{what}+{os.getpid()}+"


def place(repository: Path, path: Path, data: bytes) -> bool:
    """Make ``path`` hold ``data`` by one rename; False if it did already.

    The temporary file is in the staging folder: anything beside a config would make Triton reload
    all versions of that model. An equal file is left alone, for the same reason.
    """
    if path.is_file() and path.read_bytes() == data:
        return False
    atomic_write(path, data, temporary=owned_path(repository, "file"))
    sync_folder(path.parent)
    return True


def sync(folder: Path) -> None:
    """Flush every file to disk before the rename: a crash must not leave a version of empty
    files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def remove_folder(repository: Path, folder: Path) -> None:
    """Move the folder out of the repository by one rename, then delete it: Triton never sees half
    of it."""
    if not folder.exists():
        return
    trash = owned_path(repository, "trash")
    folder.rename(trash)
    shutil.rmtree(trash)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under ``folder``, by its path relative to ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
