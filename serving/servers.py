"""Which Tritons serve a repository now: each says so in a file of its own while it runs.

``.tidegate/servers/NAME.json`` is written when a server is live and removed when it stops. What a
killed one left is recognised by its process and ignored.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from modelspec.layout import atomic_write

FOLDER = "servers"


@dataclass(frozen=True)
class Server:
    """A running Triton: its gRPC address, the file with its key, and the process that it is
    (``started`` is the process's start in seconds since 1970, as a pid may be used again).
    ``load_timeout_s``: how long a model may take to load there."""

    repository: str
    address: str
    key_file: str
    pid: int
    started: float
    load_timeout_s: float = 300.0

    def is_alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return bool(
                abs(process.create_time() - self.started) < 1
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False


def announce(work_dir: Path, name: str, server: Server) -> None:
    """Tell publishers of the server; what dead ones left is cleared."""
    folder = work_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.json"):
        found = _read(path)
        if found is None or not found.is_alive():
            path.unlink(missing_ok=True)
    atomic_write(folder / f"{name}.json", json.dumps(asdict(server)), mode=0o600)


def withdraw(work_dir: Path, name: str) -> None:
    (work_dir / FOLDER / f"{name}.json").unlink(missing_ok=True)


def servers_of(work_dir: Path, repository: Path) -> list[Server]:
    """The live servers of this repository that run from ``work_dir``, in a stable order."""
    found = [_read(path) for path in sorted((work_dir / FOLDER).glob("*.json"))]
    wanted = str(repository.resolve())
    return [each for each in found if each and each.repository == wanted and each.is_alive()]


def _read(path: Path) -> Server | None:
    try:
        return Server(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
