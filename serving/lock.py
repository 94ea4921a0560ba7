"""One publisher at a time for a repository."""

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
    """Hold the repository's lock; RepositoryBusy after ``wait_s`` seconds names who has it.

    The kernel gives the lock back when its holder ends, by kill -9 too.
    """
    path = staging_folder(repository) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, repository, time.monotonic() + wait_s)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}: {what}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, repository: Path, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 300, 0).decode(errors="replace") or "not known"
                raise RepositoryBusy(
                    f"somebody else is publishing into {repository} ({holder}); nothing was "
                    "changed. Run the same command again when that is done"
                ) from None
            time.sleep(POLL_S)
