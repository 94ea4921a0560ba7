"""Whether each process of the gateway gets on, judged by its signs of life (``gateway.heartbeat``).

A worker that is stopped or whose event loop hangs is killed, and it alone: with several workers the
gateway's parent starts another, with one ``tidegate up`` does.
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
STOPPED_S = 3.0  # a process is stopped (SIGSTOP): sooner than uvicorn, which says nothing, kills it
SILENT_S = 20.0  # a worker's event loop has not turned
START_S = 120.0  # a worker may take so long until its first sign of life
_WORKER = "multiprocessing.spawn"  # in the command lines of several workers; one is the gateway
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: put on a datagram by the kernel


class GatewayWatch:
    """A thread of its own: nothing that is healed meanwhile keeps a worker from being found."""

    def __init__(
        self, pid: Callable[[], int | None], workers: int, tell: Callable[[str, str], None]
    ) -> None:
        """``pid`` gives the gateway's process, or None; ``tell(event, detail)`` is called in the
        thread."""
        self.name = f"tidegate-{os.getpid()}-{secrets.token_hex(8)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(b"\0" + self.name.encode())
        self._socket.settimeout(LOOK_EVERY_S / 4)
        self._pid, self._workers, self._tell = pid, workers, tell
        # process -> looks since its last sign of life, or since it was first seen
        self._quiet: dict[psutil.Process, int] = {}
        self._has_beaten: set[int] = set()
        self._has_been_ready: set[int] = set()
        self._parent: psutil.Process | None = None
        self._stopped: dict[psutil.Process, int] = {}
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
        return len(self._has_been_ready) >= self._workers

    def family(self) -> list[psutil.Process]:
        """The gateway's processes as they were last seen; they may have ended."""
        return list(self._quiet)

    def _run(self) -> None:
        while not self._ended.is_set():
            beaten = self._listen(time.monotonic() + LOOK_EVERY_S)
            try:
                self._look(beaten)
            except Exception as error:  # nothing may end this thread
                self._tell("gateway_watch_failed", f"{type(error).__name__}: {error}")

    def _listen(self, until: float) -> set[int]:
        """The processes of which a sign of life comes until then."""
        beaten: set[int] = set()
        while time.monotonic() < until and not self._ended.is_set():
            try:
                said, extra, _, _ = self._socket.recvmsg(64, socket.CMSG_SPACE(_CREDENTIALS.size))
            except OSError:  # none for a while
                continue
            senders = {
                _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
                for level, kind, data in extra
                if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS
            }
            beaten |= senders
            self._has_been_ready |= senders if said == READY else set()
        return beaten

    def _look(self, beaten: set[int]) -> None:
        family = _family(self._pid())
        if not family:
            return  # its workers may live on without it: they stay known
        gone = [each for each in self._quiet if each not in family]
        self._quiet = {each: self._quiet.get(each, -1) + 1 for each in family}
        self._stopped = {each: n for each, n in self._stopped.items() if each in family}
        self._has_beaten = {pid for pid in self._has_beaten | beaten if psutil.pid_exists(pid)}
        parent = next((each for each in family if each.pid == self._pid()), None)
        self._has_been_ready &= {each.pid for each in family}
        is_same, self._parent = parent is not None and parent == self._parent, parent
        for each in gone:
            if is_same:  # else all of them went
                self._tell("gateway_worker_died", f"process {each.pid}")
        for process in family:
            if process.pid in beaten:
                self._quiet[process] = 0
            why = self._fault(process)
            if why:
                self._end(process, why)

    def _fault(self, process: psutil.Process) -> str:
        try:
            is_stopped = process.status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return ""
        stopped = self._stopped[process] = self._stopped.get(process, -1) + 1 if is_stopped else -1
        if stopped * LOOK_EVERY_S >= STOPPED_S:
            return f"it has been stopped for {stopped * LOOK_EVERY_S:.0f} s"
        if self._workers > 1 and process.pid == self._pid():
            return ""  # it serves nobody itself
        quiet_s = self._quiet[process] * LOOK_EVERY_S
        bound_s = SILENT_S if process.pid in self._has_beaten else START_S
        return f"no sign of life for {quiet_s:.0f} s" if quiet_s >= bound_s else ""

    def _end(self, process: psutil.Process, why: str) -> None:
        try:
            self._tell("gateway_hung", f"process {process.pid}: {why}")
            process.kill()
        except psutil.Error:
            return


def _family(pid: int | None) -> list[psutil.Process]:
    """The gateway's process and its workers."""
    try:
        if pid is None:
            return []
        gateway = psutil.Process(pid)
        found = [gateway] if gateway.status() != psutil.STATUS_ZOMBIE else []
        return found + [each for each in gateway.children() if _is_worker(each)]
    except psutil.Error:
        return []


def _is_worker(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
        return process.status() != psutil.STATUS_ZOMBIE and any(_WORKER in each for each in words)
    except psutil.Error:
        return False
