"""The folder through which several workers share their counters; removed when they have ended.

Its owner holds a lock on a file in it, which ends with the process: the next gateway removes the
folder of a killed one, and never that of a living one.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from modelspec.files import lock

PREFIX = "tidegate-metrics-"
LOCK = "lock"


@contextlib.contextmanager
def shared_folder() -> Iterator[str]:
    clear_left()
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        hidden = Path(name) / f".{LOCK}"
        with hidden.open("w") as file:
            lock(file)
            hidden.rename(Path(name) / LOCK)  # so it is always locked under its final name
            yield name


def clear_left() -> None:
    """Remove the folders of gateways that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (folder / LOCK).open("r+") as file:
            if lock(file):
                shutil.rmtree(folder, ignore_errors=True)
