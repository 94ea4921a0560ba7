"""Which Tritons serve a repository now: each has a record, a file of its own, while it runs.

The record is in two folders, so that a publisher finds the server from any home: beside the
repository (``.model_repository.staging/servers/``), and in the home that the server runs from
(``.tidegate/servers/``), which is the only one if the first is not writable. It is written when a
server is live and removed when it stops. A killed server's record is recognized and ignored: by its
process, or, on another machine or in another container, by the lock that whoever started the server
holds on its record.

A repository is a path here, not a ``ModelRepository``: only where it is matters, and ``tidegate
status`` asks without the half second that importing Triton's configs takes.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO

import psutil

from modelspec.held import held_file, is_held
from modelspec.layout import staging_folder
from serving.triton.process_start import start_ticks

FOLDER = "servers"
_ROOT = 0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_held: dict[Path, IO[bytes]] = {}  # the records that this process has written


@dataclass(frozen=True)
class Server:
    """A running Triton: its gRPC address, the file with its key, and its process (``started`` is
    the process's start in clock ticks since the machine's boot: a pid may be reused).

    ``inode`` is the repository's device and inode: others may have it mounted elsewhere.
    ``work_dir`` is the state folder that the server runs from, ``pid_space`` its pid namespace,
    and ``boot`` its machine's boot: the first namespace of every machine has the same name.
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
    boot: str = ""

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
            boot=_boot(),
        )

    @property
    def is_elsewhere(self) -> bool:
        """Whether its process cannot be seen from here: it runs in another container or on another
        machine, or its pid is not known."""
        is_here = self.pid_space in ("", _pid_space()) and self.boot in ("", _boot())
        return not self.pid or not is_here

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
        path = folder / f"{name}.json"
        if path in _held:
            _held.pop(path).close()
        try:
            path.unlink(missing_ok=True)
        except OSError:
            continue  # it will be recognized as dead


def servers_of(work_dir: Path, repository: Path) -> list[Server]:
    """The live servers of this repository, whichever home they run from, in a stable order."""
    servers: dict[str, Server] = {}
    for folder in (_beside(repository), work_dir / FOLDER):
        for path in _records(folder):
            server = _read(path) if _is_trusted(path, repository) else None
            if server and server.serves(repository) and _is_alive(server, path):
                servers.setdefault(path.name, server)
    return [servers[name] for name in sorted(servers)]


def _write(folder: Path, name: str, server: Server) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in _records(folder):
        other = _read(path)
        if other is None or not _is_alive(other, path):
            path.unlink(missing_ok=True)
    path = folder / f"{name}.json"
    # It contains no secret, and the publisher may be another user.
    record = held_file(path, json.dumps(asdict(server)).encode(), mode=0o644)
    if path in _held:
        _held[path].close()
    _held[path] = record


def _is_alive(server: Server, record: Path) -> bool:
    """Records of earlier versions have no boot, and were not held."""
    return is_held(record) if server.is_elsewhere and server.boot else server.is_alive()


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


@cache
def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _pid_space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
