"""Several worker processes of the gateway on one port: none of them ends the others, and none
outlives the process that started them."""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time

from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from gateway.metrics import SHARED_FOLDER

log = logging.getLogger("gateway")
RETRY_S = 1.0
# The time for a worker's first response: on a busy machine its imports alone take longer than a
# running worker has to respond, and each worker that is killed for it makes the machine busier.
START_S, PING_S = 120.0, 0.5
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class Workers(Multiprocess):
    """uvicorn's supervisor ends every worker when one cannot start: that is right at the first
    start, when none can, but wrong while others serve. Here that worker is retried."""

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self._starting: dict[int | None, float] = {}  # pid -> start, until its first response

    def init_processes(self) -> None:
        super().init_processes()
        self._starting = {process.pid: time.monotonic() for process in self.processes}

    def keep_subprocess_alive(self) -> None:
        for index, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if self._is_alive(process):
                continue
            process.kill()  # it may hang
            process.join()
            _forget(process.pid)
            if process.exitcode == STARTUP_FAILURE:
                if not self._others_serve(process):
                    log.error("no worker can start (see above)")
                    self.should_exit.set()
                    return
                log.error("worker %s cannot start (see above); trying again", process.pid)
                self.should_exit.wait(RETRY_S)
            else:
                log.error("worker %s has died; starting another", process.pid)
            replacement = Process(self.config, self.sockets)
            self.processes[index] = replacement
            replacement.start()
            self._starting[replacement.pid] = time.monotonic()

    def _is_alive(self, process: Process) -> bool:
        started = self._starting.get(process.pid)
        if started is None:
            return process.is_alive(self.config.timeout_worker_healthcheck)
        if process.is_alive(PING_S):
            del self._starting[process.pid]
            return True
        has_ended = not process.process.is_alive()
        if has_ended or time.monotonic() - started > START_S:
            del self._starting[process.pid]
            return False
        return True

    def _others_serve(self, process: Process) -> bool:
        return any(other.is_ready(1) for other in self.processes if other is not process)


def _forget(pid: int | None) -> None:
    """Remove the gauges of a worker that has ended from /metrics: it is no longer healthy and has
    no requests in flight. Its counters stay."""
    if pid is not None and SHARED_FOLDER in os.environ:
        with contextlib.suppress(OSError):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]


def run_workers(config: Config, listener: socket.socket) -> None:
    """Serve the connections to ``listener`` until a signal."""
    listener.set_inheritable(True)
    with listener:
        Workers(config, [listener]).run()


def end_with_parent() -> None:
    """Called by a worker: it gets SIGTERM when its parent ends, even by kill -9. Otherwise it would
    keep the port, and respond for a gateway that was stopped."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent.pid:
        sys.exit("the gateway has ended")
