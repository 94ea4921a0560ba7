"""One publisher at a time per repository."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(descriptor, repository, time.monotonic() + wait_s)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}: {what}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, repository: Path, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 300, 0).decode(errors="replace") or "unknown"
                raise RepositoryBusy(
                    f"another process is publishing into {repository} ({holder}); nothing was "
                    "changed. Run the same command again when it is done"
                ) from None
            time.sleep(POLL_S)
