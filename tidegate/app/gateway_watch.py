"""Watches the heartbeats of the gateway's processes (``gateway.heartbeat``).

Only the worker that is stopped or whose event loop hangs is killed: with several workers the
gateway's parent starts another, with a single one ``tidegate up`` does.
"""

import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable

import psutil

from gateway.heartbeat import READY

LOOK_EVERY_S = 1.0
STOPPED_S = 3.0  # a process is stopped (SIGSTOP): sooner than uvicorn, which kills it silently
SILENT_S = 20.0  # a worker's event loop has not turned
START_S = 120.0  # how long a worker may take until its first heartbeat
_WORKER = (
    "multiprocessing.spawn"  # in the workers' command lines; a single one is the gateway itself
)
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: attached to a datagram by the kernel


class GatewayWatch:
    """Runs in its own thread, so that healing something else never delays finding a hung worker."""

    def __init__(
        self, pid: Callable[[], int | None], workers: int, report: Callable[[str, str], None]
    ) -> None:
        """``pid`` returns the gateway's process id, or None; ``report(event, detail)`` is called
        from the thread."""
        self.name = f"tidegate-{os.getpid()}-{secrets.token_hex(8)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(b"\0" + self.name.encode())
        self._socket.settimeout(LOOK_EVERY_S / 4)
        self._pid, self._workers, self._report = pid, workers, report
        # process -> looks since its last heartbeat, or since it was first seen
        self._silent_looks: dict[psutil.Process, int] = {}
        self._seen_alive: set[int] = set()
        self._seen_ready: set[int] = set()
        self._parent: psutil.Process | None = None
        self._stopped_looks: dict[psutil.Process, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(2 * LOOK_EVERY_S)
        self._socket.close()

    def is_started(self) -> bool:
        """Whether every worker has been ready."""
        return len(self._seen_ready) >= self._workers

    def family(self) -> list[psutil.Process]:
        """The gateway's processes when last seen; they may have ended."""
        return list(self._silent_looks)

    def _run(self) -> None:
        while not self._ended.is_set():
            alive = self._listen(time.monotonic() + LOOK_EVERY_S)
            try:
                self._look(alive)
            except Exception as error:  # nothing may end this thread
                self._report("gateway_watch_failed", f"{type(error).__name__}: {error}")

    def _listen(self, until: float) -> set[int]:
        """The ids of the processes that send a heartbeat before ``until``."""
        alive: set[int] = set()
        while time.monotonic() < until and not self._ended.is_set():
            try:
                message, ancillary, _, _ = self._socket.recvmsg(
                    64, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except OSError:  # none for a while
                continue
            senders = {
                _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
                for level, type_, data in ancillary
                if level == socket.SOL_SOCKET and type_ == socket.SCM_CREDENTIALS
            }
            alive |= senders
            self._seen_ready |= senders if message == READY else set()
        return alive

    def _look(self, alive: set[int]) -> None:
        family = _family(self._pid())
        if not family:
            return  # its workers may outlive it: keep them
        gone = [process for process in self._silent_looks if process not in family]
        self._silent_looks = {
            process: self._silent_looks.get(process, -1) + 1 for process in family
        }
        self._stopped_looks = {
            process: looks for process, looks in self._stopped_looks.items() if process in family
        }
        self._seen_alive = {pid for pid in self._seen_alive | alive if psutil.pid_exists(pid)}
        parent = next((process for process in family if process.pid == self._pid()), None)
        self._seen_ready &= {process.pid for process in family}
        is_same, self._parent = parent is not None and parent == self._parent, parent
        for process in gone:
            if is_same:  # otherwise all of them ended
                self._report("gateway_worker_died", f"process {process.pid}")
        for process in family:
            if process.pid in alive:
                self._silent_looks[process] = 0
            fault = self._fault(process)
            if fault:
                self._end(process, fault)

    def _fault(self, process: psutil.Process) -> str:
        try:
            is_stopped = process.status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return ""
        stopped = self._stopped_looks[process] = (
            self._stopped_looks.get(process, -1) + 1 if is_stopped else -1
        )
        if stopped * LOOK_EVERY_S >= STOPPED_S:
            return f"it has been stopped for {stopped * LOOK_EVERY_S:.0f} s"
        if self._workers > 1 and process.pid == self._pid():
            return ""  # it serves no requests itself
        quiet_s = self._silent_looks[process] * LOOK_EVERY_S
        bound_s = SILENT_S if process.pid in self._seen_alive else START_S
        return f"no sign of life for {quiet_s:.0f} s" if quiet_s >= bound_s else ""

    def _end(self, process: psutil.Process, fault: str) -> None:
        try:
            self._report("gateway_hung", f"process {process.pid}: {fault}")
            process.kill()
        except psutil.Error:
            return


def _family(pid: int | None) -> list[psutil.Process]:
    """The gateway's process and its workers."""
    try:
        if pid is None:
            return []
        gateway = psutil.Process(pid)
        processes = [gateway] if gateway.status() != psutil.STATUS_ZOMBIE else []
        return processes + [child for child in gateway.children() if _is_worker(child)]
    except psutil.Error:
        return []


def _is_worker(process: psutil.Process) -> bool:
    try:
        arguments = process.cmdline()
        return process.status() != psutil.STATUS_ZOMBIE and any(
            _WORKER in argument for argument in arguments
        )
    except psutil.Error:
        return False
