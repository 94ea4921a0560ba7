"""The folder in which several workers put their counters together, gone when they are gone.

Its owner holds a lock on a file in it, which ends with the process: what a killed gateway left is
removed by the next one, and what a living one uses never is.
"""

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "tidegate-metrics-"
LOCK = "lock"


@contextlib.contextmanager
def shared_folder() -> Iterator[str]:
    clear_left()
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        being_made = Path(name) / f".{LOCK}"
        with being_made.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            being_made.rename(Path(name) / LOCK)  # under this name it was always locked
            yield name


def clear_left() -> None:
    """Remove the folders of gateways that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (folder / LOCK).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
