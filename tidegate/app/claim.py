"""One stack per home: the running one is described in ``.tidegate/up.json``, which it keeps locked.

The lock ends with the process, however it ends, so a file left by a killed stack misleads nobody.
"""

import contextlib
import json
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from modelspec.files import lock
from serving.errors import ServingError
from serving.triton.servers import servers_of
from tidegate.app.paths import Paths

FILE = "up.json"
LOCK_WAIT_S = 2.0  # a reader holds the lock only for a moment
TRIES, PAUSE_S = 20, 0.1  # until the file has been written


@dataclass
class Running:
    """A stack that is running or starting. Times are ISO 8601 in UTC; ``logs`` are file paths.

    ``triton`` are the ports of the first replica, ``replicas`` those of all of them. ``phase`` is
    what it does while it starts, '' once it is ready; ``grpc`` is the HOST:PORT of the gateway's
    gRPC API."""

    pid: int
    home: str
    repository: str
    url: str
    admin: str
    triton: dict[str, int]
    workers: int
    models: list[str]
    logs: list[str]
    replicas: list[dict[str, int]] = field(default_factory=list)
    certificate_file: str = ""
    config: str = "default"
    is_ready: bool = False
    phase: str = ""
    grpc: str = ""
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class NothingRuns(ServingError):
    """No stack is running where one is needed."""


class StillStarting(ServingError):
    """The stack is not ready yet: what is asked of it would only look like a fault."""

    def __init__(self, running: Running) -> None:
        phase = f" ({running.phase})" if running.phase else ""
        super().__init__(
            f"the stack in {running.home} is still starting{phase}: wait until `tidegate status` "
            "says healthy"
        )


class Claim:
    """This process's exclusive claim on a home; ``close`` releases it."""

    def __init__(self, state: Path, running: Running) -> None:
        """Raises ServingError when another stack is running there."""
        state.mkdir(parents=True, exist_ok=True)
        self._path = state / FILE
        self._file = self._path.open("a+", encoding="utf-8")
        try:
            self._lock()
        except BaseException:
            self._file.close()
            raise
        self.running = running
        self.write()

    def write(self) -> None:
        """Write ``running`` as it is now, for readers."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(asdict(self.running), indent=2))
        self._file.flush()

    def close(self) -> None:
        self._file.truncate(0)
        self._file.close()

    def _lock(self) -> None:
        if lock(self._file, LOCK_WAIT_S):
            return
        other = _read(self._file)
        owner = f" (process {other.pid}, {other.url}, since {other.since})" if other else ""
        raise ServingError(
            f"a stack is already running in {self._path.parent.parent}{owner}: stop it, or give "
            "this one a home of its own with TIDEGATE_HOME (TIDEGATE_REPOSITORY may name the same "
            "repository)"
        )


def running_in(state: Path) -> Running | None:
    """The stack that is running in this home, or None."""
    try:
        file = (state / FILE).open(encoding="utf-8")
    except FileNotFoundError:
        return None
    with file:
        return None if lock(file, shared=True) else _read(file)


def ready_in(state: Path) -> Running | None:
    """The stack that is running in this home, or None; StillStarting while it is not ready."""
    running = running_in(state)
    if running and not running.is_ready:
        raise StillStarting(running)
    return running


def home_serving(paths: Paths, repository: Path) -> Path:
    """The home of the one stack that serves the repository.

    Raises NothingRuns when there is none, ServingError when there are several.
    """
    homes = homes_serving(paths, repository)
    if not homes:
        raise NothingRuns(f"no stack was found that serves {repository}")
    if len(homes) > 1:
        raise ServingError(
            f"{repository} is served from {' and '.join(map(str, homes))}: choose one with "
            "TIDEGATE_HOME"
        )
    return homes[0]


def homes_serving(paths: Paths, repository: Path) -> list[Path]:
    """The homes of the stacks known to serve the repository now."""
    states = {
        Path(server.work_dir) for server in servers_of(paths.state, repository) if server.work_dir
    }
    return sorted(state.parent for state in states)


def _read(file: IO[str]) -> Running | None:
    for _ in range(TRIES):  # it may be half-written
        file.seek(0)
        with contextlib.suppress(ValueError, TypeError):
            fields: dict[str, Any] = json.loads(file.read())
            return Running(**fields)
        time.sleep(PAUSE_S)
    return None
