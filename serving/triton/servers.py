"""Which Tritons serve a repository now: each has a record, a file of its own, while it runs.

The record is in two folders, so that a publisher finds the server from any home: beside the
repository (``.model_repository.staging/servers/``), and in the home that the server runs from
(``.tidegate/servers/``), which is the only one if the first is not writable. It is written when a
server is live and removed when it stops. A killed server's record is recognized by its process and
ignored.

A repository is a path here, not a ``ModelRepository``: only where it is matters, and ``tidegate
status`` asks without the half second that importing Triton's configs takes.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from modelspec.files import atomic_write
from modelspec.layout import staging_folder
from serving.triton.process_start import start_ticks

FOLDER = "servers"
_ROOT = 0


@dataclass(frozen=True)
class Server:
    """A running Triton: its gRPC address, the file with its key, and its process (``started`` is
    the process's start in clock ticks since the machine's boot: a pid may be reused).

    ``inode`` is the repository's device and inode: others may have it mounted elsewhere.
    ``work_dir`` is the state folder that the server runs from, ``pid_space`` its pid namespace.
    ``load_timeout_s``: how long a model may take to load there.
    For a server that was named by hand only the address and the key file are known.
    """

    repository: str
    address: str
    key_file: str
    pid: int = 0
    started: int = 0
    inode: str = ""
    work_dir: str = ""
    pid_space: str = ""
    load_timeout_s: float = 300.0

    @classmethod
    def running(
        cls, repository: Path, address: str, key_file: Path, pid: int, work_dir: Path
    ) -> "Server":
        """The server that this process has started, whose pid is ``pid``."""
        return cls(
            repository=str(repository.resolve()),
            address=address,
            key_file=str(key_file.resolve()),
            pid=pid,
            started=start_ticks(pid),
            inode=_inode(repository),
            work_dir=str(work_dir.resolve()),
            pid_space=_pid_space(),
        )

    @property
    def is_elsewhere(self) -> bool:
        """Whether its process cannot be seen from here: it runs in another container, or its pid is
        not known."""
        return not self.pid or self.pid_space not in ("", _pid_space())

    def is_alive(self) -> bool:
        """False if its process has certainly ended."""
        if self.is_elsewhere:
            return True
        try:
            process = psutil.Process(self.pid)
            return bool(
                start_ticks(self.pid) == self.started and process.status() != psutil.STATUS_ZOMBIE
            )
        except (psutil.Error, OSError):
            return False

    def serves(self, repository: Path) -> bool:
        return self.repository == str(repository.resolve()) or (
            bool(self.inode) and self.inode == _inode(repository)
        )


def announce(work_dir: Path, name: str, server: Server) -> bool:
    """Write the server's record for publishers and clear the records of dead servers. False if
    publishers in another home cannot find it, because the folder beside the repository is not
    writable.

    OSError only if the record cannot be written anywhere.
    """
    home_folder, repository = work_dir / FOLDER, Path(server.repository)
    if _is_scratch(repository):
        _write(home_folder, name, server)
        return True
    try:
        _write(_beside(repository), name, server)
    except OSError:
        _write(home_folder, name, server)
        return False
    try:
        _write(home_folder, name, server)
    except OSError:
        return True  # publishers still find it beside the repository
    return True


def withdraw(work_dir: Path, name: str, repository: Path) -> None:
    for folder in (work_dir / FOLDER, _beside(repository)):
        try:
            (folder / f"{name}.json").unlink(missing_ok=True)
        except OSError:
            continue  # it will be recognized as dead


def servers_of(work_dir: Path, repository: Path) -> list[Server]:
    """The live servers of this repository, whichever home they run from, in a stable order."""
    servers: dict[str, Server] = {}
    for folder in (_beside(repository), work_dir / FOLDER):
        for path in _records(folder):
            server = _read(path) if _is_trusted(path, repository) else None
            if server and server.serves(repository) and server.is_alive():
                servers.setdefault(path.name, server)
    return [servers[name] for name in sorted(servers)]


def _write(folder: Path, name: str, server: Server) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in _records(folder):
        other = _read(path)
        if other is None or not other.is_alive():
            path.unlink(missing_ok=True)
    # It contains no secret, and the publisher may be another user.
    atomic_write(folder / f"{name}.json", json.dumps(asdict(server)))


def _beside(repository: Path) -> Path:
    return staging_folder(repository.resolve()) / FOLDER


def _is_scratch(repository: Path) -> bool:
    """Whether it is being built beside another repository: then its builder knows the server, and
    removes only the folder itself."""
    return any(part.startswith(".") and part.endswith(".staging") for part in repository.parts)


def _records(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.glob("*.json"))
    except OSError:
        return


def _is_trusted(path: Path, repository: Path) -> bool:
    """Whether the record's author may decide where our key is sent: we, root, or the repository's
    owner."""
    try:
        return path.stat().st_uid in (os.geteuid(), _ROOT, repository.stat().st_uid)
    except OSError:
        return False


def _read(path: Path) -> Server | None:
    try:
        return Server(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _inode(repository: Path) -> str:
    try:
        stat = repository.stat()
    except OSError:
        return ""
    return f"{stat.st_dev}:{stat.st_ino}"


def _pid_space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
