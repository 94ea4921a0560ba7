"""One publisher at a time per repository."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from modelspec.layout import staging_folder
from serving.errors import RepositoryBusy

WAIT_S = 120.0
POLL_S = 0.1


@contextmanager
def publishing(repository: Path, what: str, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold the repository's lock; RepositoryBusy after ``wait_s`` seconds names the holder.

    The kernel releases the lock when its holder ends, even by kill -9.
    """
    path = staging_folder(repository) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=wait_s, poll_interval=POLL_S)
    try:
        lock.acquire()
    except Timeout:
        holder = path.read_bytes()[:300].decode(errors="replace") or "unknown"
        raise RepositoryBusy(
            f"another process is publishing into {repository} ({holder}); nothing was changed. "
            "Run the same command again when it is done"
        ) from None
    try:
        path.write_text(f"process {os.getpid()}: {what}", encoding="utf-8")
        yield
    finally:
        lock.release()
