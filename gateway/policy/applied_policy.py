"""Which policy each worker has in force, for commands that change ``gateway.toml`` and wait for it.

Each worker has a file in ``workers/`` in the state folder, and holds a lock on it as long as it
lives: nobody waits for the file of a killed worker.
"""

import contextlib
import hashlib
import logging
import os
import secrets
from pathlib import Path

from modelspec.files import lock

log = logging.getLogger("gateway")
FOLDER = "workers"
_LENGTH = 12  # of a version, in bytes: overwriting it needs no space on the disk


def version_of(data: bytes) -> str:
    """The version of a policy file: 12 hex digits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:_LENGTH]


class AppliedPolicy:
    """One worker's report. Disk errors are not raised, but logged once."""

    def __init__(self, state_folder: Path, policy_file: Path) -> None:
        name = f"{_prefix(policy_file)}{os.getpid()}.{secrets.token_hex(4)}"
        self._path = state_folder / FOLDER / name
        self._descriptor: int | None = None
        self._fault = ""

    def report(self, version: str) -> None:
        """Report the version that is in force now."""
        try:
            if self._descriptor is None:
                self._descriptor = self._open_locked()
            os.pwrite(self._descriptor, version.ljust(_LENGTH).encode(), 0)
            if not self._path.exists():
                self._path.with_name(f".{self._path.name}").rename(self._path)
        except OSError as error:
            if self._fault != str(error):
                self._fault = str(error)
                log.warning("tidegate canary and promote do not wait for this worker: %s", error)

    def close(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def _open_locked(self) -> int:
        """The file, under a hidden name until it has content."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        hidden = self._path.with_name(f".{self._path.name}")
        descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT, 0o600)
        lock(descriptor)
        return descriptor


def in_force(state_folder: Path, policy_file: Path) -> list[tuple[int, str]]:
    """The process id of each living worker that uses this file, and the version that it has in
    force."""
    workers = []
    for path in (state_folder / FOLDER).glob(f"{_prefix(policy_file)}*"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if lock(file, shared=True):
                path.unlink()  # its worker has ended
            else:
                version = file.read(_LENGTH).decode().strip()
                workers.append((int(path.name.split(".")[1]), version))
    return workers


def _prefix(policy_file: Path) -> str:
    return hashlib.sha256(str(policy_file.resolve()).encode()).hexdigest()[:_LENGTH] + "."
