"""A request to the watcher of a Triton to restart it: a file of the state folder, which the watcher
takes.

It names the process, so that a request which comes late restarts no other one.
"""

import contextlib
from pathlib import Path

from modelspec.files import atomic_write

FOLDER = "restarts"


def ask_for_restart(work_dir: Path, address: str, pid: int) -> None:
    """Ask for a restart of the Triton at ``address`` (HOST:GRPC_PORT), whose process is ``pid``.
    OSError if that cannot be written."""
    (work_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    atomic_write(_path(work_dir, address), str(pid))


def is_asked_for(work_dir: Path, address: str) -> bool:
    """Whether a request for it has not been taken yet."""
    return _path(work_dir, address).exists()


def withdraw(work_dir: Path, address: str) -> None:
    """Take the request back, if it has not been taken yet."""
    _path(work_dir, address).unlink(missing_ok=True)


def take(work_dir: Path, address: str, pid: int | None) -> bool:
    """Remove the request for it, if there is one; whether it is for this process."""
    path = _path(work_dir, address)
    with contextlib.suppress(OSError, ValueError):  # healing must go on
        asked = int(path.read_text())
        path.unlink()
        return asked == pid
    return False


def _path(work_dir: Path, address: str) -> Path:
    return work_dir / FOLDER / address
