"""Run one Triton server as a child process: start, wait, stop, leave nothing behind.

with TritonServer(LaunchOptions(ModelRepository(folder), work_dir)) as server:
    server.control.load("text_embedding")
"""

import contextlib
import math
import os
import re
import secrets
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

from modelspec.address import joined, reached_at
from modelspec.files import PRIVATE, lock, write_private
from serving.errors import ServingError, TritonDied
from serving.repository.model_repository import ModelRepository
from serving.triton import children, leftovers, servers
from serving.triton.backend_directory import assemble
from serving.triton.control import KEY_HEADER, LOAD_TIMEOUT_S, TritonControl
from serving.triton.installation import Installation, find_triton
from serving.triton.loading import Loading
from serving.triton.ports import Ports, require_free

# Closed to clients without our key: these APIs read or change what the server serves.
RESTRICTED_HTTP = "model-repository,shared-memory,trace,logging"
RESTRICTED_GRPC = "model-repository,shared-memory,trace,logging"
START_TIMEOUT_S = 60.0
EXIT_TIMEOUT_S = 10
STUBS_EXIT_S = 2.0
_HUGE_PAGES = "glibc.malloc.hugetlb"
# What a path may contain: Triton 2.51 starts Python processes with ``bash -c``, without quotes.
PLAIN = re.compile(r"[A-Za-z0-9_@%+./-]+")


@dataclass(frozen=True)
class LaunchOptions:
    """Where the models are, where to keep logs and keys, and which ports to listen on."""

    repository: ModelRepository
    work_dir: Path
    ports: Ports = field(default_factory=Ports)
    address: str = "127.0.0.1"
    config_name: str | None = None
    name: str = "triton"
    load_timeout_s: float = LOAD_TIMEOUT_S
    gpu_metrics: bool = True  # off where the driver and Triton's DCGM do not agree
    # Off where every config is complete. For a model of a Python-based backend, Triton starts a
    # process only to complete its config, and that process takes a second to end.
    auto_complete: bool = True


class TritonServer:
    """One tritonserver process and the shared memory, backend directory and key that it owns."""

    def __init__(
        self,
        options: LaunchOptions,
        installation: Installation | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        """``report`` is called with problems that do not stop the server (what could not be
        written), and with the model that is still loading."""
        self.options, self._report = options, report
        self._backends: Path | None = None  # reused by ``restart``
        self._held: list[IO[bytes]] = []  # which say that what this server leaves has an owner
        self._is_restarting = False
        self._process_lock = threading.RLock()  # it may be stopped while its watcher restarts it
        self._is_ending = threading.Event()
        self.key = _restricted_key(options.work_dir / "triton.key")
        self._installation = installation or find_triton()
        self._prefix = leftovers.new_prefix()
        self._process: subprocess.Popen[bytes] | None = None
        self._log_offset = 0  # where in the log (bytes) this process's part begins
        self.control = TritonControl(
            joined(reached_at(options.address), options.ports.grpc),
            self.key,
            options.load_timeout_s,
            self._loading,
        )

    @property
    def log_file(self) -> Path:
        return self.options.work_dir / "logs" / f"{self.options.name}.log"

    @property
    def pid(self) -> int | None:
        process = self._process  # another thread may stop it meanwhile
        return process.pid if process else None

    def start(self) -> None:
        """Launch the server and return once it is live. If that fails, ServingError, and nothing is
        left behind."""
        self.require_ports()
        self._held = self._held or leftovers.hold(self._prefix, self._build_folder)
        self._log_offset = self.log_file.stat().st_size if self.log_file.is_file() else 0
        backends = self._assemble_backends()
        repository = self._shell_safe(self.options.repository.path, "models")
        command = self._command(repository, self._shell_safe(backends, "backends"))
        with self._process_lock:
            self._require_startable()
            self._process = children.start(command, self._environment(repository), self._open_log())
        try:
            self._wait_live()
            self._announce()
        except BaseException:
            self.stop()
            raise

    def forbid_start(self) -> None:
        """From now on it is not started: a start that is under way, in another thread, fails."""
        self._is_ending.set()

    def _require_startable(self) -> None:
        if self._is_ending.is_set():
            raise ServingError("Triton is not started, because it is being stopped for good")

    def require_ports(self) -> None:
        """ServingError unless this server can listen on its ports now."""
        require_free(self.options.ports.endpoints(self.options.address))

    def is_alive(self) -> bool:
        process = self._process
        return process is not None and process.poll() is None

    def why_ended(self) -> str:
        """How the process ended, and what its log says about it; '' if none was started."""
        process = self._process
        return children.why_ended(process, self.log_file, self._log_offset) if process else ""

    def stop(self, *, gently: bool = True) -> None:
        """Stop the server and its Python stubs (SIGTERM, then SIGKILL), and remove its shared
        memory. With ``gently=False`` the server is killed at once."""
        with self._process_lock:
            if self._process is not None:
                servers.withdraw(self.options.work_dir, self._prefix, self.options.repository.path)
                stubs = _stubs(self._prefix)
                if not gently:
                    self._process.kill()
                children.end(self._process, EXIT_TIMEOUT_S + 5)
                _end(stubs, STUBS_EXIT_S if gently else 0)
                leftovers.remove(self._prefix)
                self._process = None
        if not self._is_restarting:
            leftovers.remove_backends(self._prefix, self._build_folder)
            while self._held:
                self._held.pop().close()

    def restart(self) -> None:
        """``stop`` what is left of the server and ``start`` it again; this needs no disk space."""
        self._is_restarting = True
        try:
            self.stop()
            self.start()
        finally:
            self._is_restarting = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self.control.close()

    def _loading(self, model: str) -> Loading:
        if not self.is_alive():
            raise TritonDied(f"Triton has ended: {self._last_error()}")
        return Loading(model, self.options.repository, self.log_file, self.pid or 0, self._report)

    def _shell_safe(self, path: Path, what: str) -> Path:
        """A path to the folder that ``bash -c`` takes without quotes: its own, or that of a link.
        The link is beside the server's shared memory, and is removed with it."""
        if PLAIN.fullmatch(str(path)):
            return path
        link = leftovers.FOLDER / f"{self._prefix}{what}"
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve(), target_is_directory=True)
        return link

    @property
    def _build_folder(self) -> Path:
        return self.options.work_dir / leftovers.BUILD

    def _assemble_backends(self) -> Path:
        # A separate folder: another server of the same home may be running from the previous one.
        if self._backends is None or not self._backends.is_dir():
            self._backends = assemble(
                self._installation, self._build_folder / f"{self._prefix}backends"
            )
        return self._backends

    def _open_log(self) -> IO[bytes]:
        try:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            return self.log_file.open("ab")
        except OSError as error:
            self._report(f"Triton's log is not written: {error}")
            return Path(os.devnull).open("ab")

    def _announce(self) -> None:
        """Announce the server: from now on publishers load new versions on it."""
        options, pid = self.options, self._process.pid if self._process else 0
        key_file = options.work_dir / "triton.key"
        server = servers.Server.running(
            options.repository.path, self.control.address, key_file, pid, options.work_dir
        )
        server = replace(server, load_timeout_s=options.load_timeout_s)
        try:
            is_found = servers.announce(options.work_dir, self._prefix, server)
        except OSError as error:
            self._report(
                f"publishers will not find this server until it is restarted, because it cannot be "
                f"announced: {error}. Publish with --server {self.control.address}"
            )
            return
        if not is_found:
            self._report(
                f"nothing can be written beside {options.repository}: from another home, publish "
                f"with --server {self.control.address}"
            )

    def _wait_live(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.control.is_live():
            self._require_startable()
            if not self.is_alive():
                raise TritonDied(f"Triton ended while starting: {self._last_error()}")
            if time.monotonic() > deadline:
                raise ServingError(
                    f"Triton was not live after {START_TIMEOUT_S:.0f} s: see {self.log_file}"
                )
            time.sleep(0.05)

    def _last_error(self) -> str:
        try:
            lines = self.log_file.read_text(errors="replace").splitlines()[-40:]
        except OSError:
            lines = []
        errors = [line for line in lines if line.startswith("E") or "error" in line.lower()]
        return (errors or lines or ["no output"])[-1].strip() + f" (log: {self.log_file})"

    def _command(self, repository: Path, backends: Path) -> list[str]:
        options, ports, address = self.options, self.options.ports, self.options.address
        command = [
            str(self._installation.binary),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            "--model-control-mode=explicit",
            f"--http-address={address}",
            f"--grpc-address={address}",
            f"--metrics-address={address}",
            f"--http-port={ports.http}",
            f"--grpc-port={ports.grpc}",
            f"--metrics-port={ports.metrics}",
            f"--http-restricted-api={RESTRICTED_HTTP}:{KEY_HEADER}={self.key}",
            f"--grpc-restricted-protocol={RESTRICTED_GRPC}:{KEY_HEADER}={self.key}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            # Triton's default of 30 s ends in its death (2.51 throws while it clears up); a stub
            # that has ended, or hangs, is detected by ``loading``.
            f"--backend-config=python,stub-timeout-seconds={math.ceil(options.load_timeout_s)}",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        ]
        if self._installation.caches:
            command.append(f"--cache-directory={self._installation.caches}")
        if not options.gpu_metrics:
            command.append("--allow-gpu-metrics=false")
        if not options.auto_complete:
            command.append("--disable-auto-complete-config")
        if options.config_name:
            command.append(f"--model-config-name={options.config_name}")
        return command

    def _environment(self, repository: Path) -> dict[str, str]:
        return {
            **os.environ,
            **self._installation.environment,
            # Python-based backends get the config, but not the path of the repository.
            "TIDEGATE_MODEL_REPOSITORY": str(repository),
            # A new __pycache__ in a version folder would look like a changed model to Triton.
            "PYTHONDONTWRITEBYTECODE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            # Otherwise ONNX Runtime (1.31) keeps a device id in ~/.cache and sends telemetry.
            "ORT_DISABLE_TELEMETRY": "1",
            "GLIBC_TUNABLES": with_huge_pages(os.environ.get("GLIBC_TUNABLES", "")),
        }


def with_huge_pages(tunables: str) -> str:
    """``GLIBC_TUNABLES`` with huge pages for what models allocate, unless it says how already.

    A model reads all of its weights for each run, and finds them through a 512th of the page
    table's entries: MiniLM on a CPU takes 8 to 10 % less (docs/performance.md). It needs glibc 2.35
    and a kernel whose ``transparent_hugepage/enabled`` is ``madvise`` or ``always``; elsewhere it
    does nothing.
    """
    if _HUGE_PAGES in tunables:
        return tunables
    return ":".join([*filter(None, [tunables]), f"{_HUGE_PAGES}=1"])


def _restricted_key(path: Path) -> str:
    """Read the key, or create one that only this user can read. Of several processes the first
    decides; an empty file, which a full disk may leave, counts as none."""
    if key := _stored_key(path):
        return key
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE), "rb") as file:
        lock(file, wait_s=None)
        if not _stored_key(path):
            write_private(path, secrets.token_hex(32).encode())
    return _stored_key(path)


def _stored_key(path: Path) -> str:
    """'' if there is none yet."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def _stubs(prefix: str) -> list[psutil.Process]:
    """The server's Python stubs, whatever their parent: those of a killed server live on, and hold
    its HTTP port and connections open (Triton does not mark them close-on-exec)."""
    processes = psutil.process_iter(["name", "cmdline"])
    return [
        process
        for process in processes
        if process.info["name"] != "tritonserver"
        and any(prefix in word for word in process.info["cmdline"] or ())
    ]


def _end(processes: list[psutil.Process], grace_s: float) -> None:
    """Return once they have ended: killed, if they have not within ``grace_s`` seconds."""
    for process in _alive(processes, grace_s):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            process.kill()
    _alive(processes, 5)


def _alive(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that still run after that time; [] as soon as none does. A zombie has ended, and holds
    nothing, but whoever inherited it from a killed server may be slow to reap it."""
    deadline = time.monotonic() + timeout_s
    while processes := [process for process in processes if _runs(process)]:
        if time.monotonic() >= deadline:
            break
        time.sleep(0.01)
    return processes


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
