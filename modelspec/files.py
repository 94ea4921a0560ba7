"""Files that survive a crash: written whole or not at all, hashed, locked.

A lock that is only waited for is a ``filelock.FileLock``. ``lock`` is for what that does not do: a
shared lock, by which a reader sees whether the owner of a file is alive without taking it over, and
a lock on a file that is open already, because it is renamed or has content.
"""

import contextlib
import fcntl
import glob
import hashlib
import os
import secrets
import time
from pathlib import Path
from typing import IO

PRIVATE = 0o600  # only this user reads it
POLL_S = 0.1
STALE_S = 3600.0  # a temporary file of this age was left by a process that was killed


def atomic_write(
    path: Path, data: bytes | str, mode: int = 0o644, temporary: Path | None = None
) -> None:
    """Write the whole file or nothing: a temporary file, fsync, rename. A symbolic link stays one,
    and what it points to is replaced: others may read that.

    ``temporary`` must be on the same file system; by default it is a hidden file beside the file,
    of a name that no other thread, process or container on this disk has.
    """
    path = path.resolve() if path.is_symlink() else path
    payload = data.encode() if isinstance(data, str) else data
    if temporary is None:
        _remove_stale(path.parent, f".{glob.escape(path.name)}.*.tmp")
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _remove_stale(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):  # it has just been renamed, or is another user's
            if time.time() - path.stat().st_mtime > STALE_S:
                path.unlink()


def write_private(path: Path, data: bytes) -> None:
    """Atomically write a file that only this user can read; makes the folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data, PRIVATE)


def sync_folder(folder: Path) -> None:
    """Flush the folder's entries to the disk: a rename in it then survives a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Flush every file to disk before the rename: a crash must not leave a version of empty
    files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def file_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, in hex; OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under ``folder``, by its path relative to ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def lock(file: int | IO[bytes] | IO[str], wait_s: float | None = 0.0, shared: bool = False) -> bool:
    """Lock an open file; False if another process still has it after ``wait_s`` seconds (None:
    wait as long as it takes).

    The lock ends when the file is closed, or with the process, however it ends. A ``shared`` lock
    is refused only while another process has an exclusive one.
    """
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if wait_s is None:
        fcntl.flock(file, operation)
        return True
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, operation | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))
