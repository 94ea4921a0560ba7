"""Several processes of the gateway, which share its port: none of them ends the others, and none
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
AGAIN_S = 1.0
# Until a worker answers for the first time: on a busy machine its imports alone take longer than
# what one that serves has for an answer, and each that is killed for it makes the machine busier.
START_S, ASK_S = 120.0, 0.5
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class Workers(Multiprocess):
    """uvicorn's supervisor, which ends every worker when one cannot start: right at the first
    start, when none can, and wrong while others serve. Here that one is tried again."""

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self._starting: dict[int | None, float] = {}  # since when, of those that never answered

    def init_processes(self) -> None:
        super().init_processes()
        self._starting = {each.pid: time.monotonic() for each in self.processes}

    def keep_subprocess_alive(self) -> None:
        for place, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if self._is_alive(process):
                continue
            process.kill()  # one that hangs
            process.join()
            _forget(process.pid)
            if process.exitcode == STARTUP_FAILURE:
                if not self._others_serve(process):
                    log.error("no worker can start (see above)")
                    self.should_exit.set()
                    return
                log.error("worker %s cannot start (see above); trying again", process.pid)
                self.should_exit.wait(AGAIN_S)
            else:
                log.error("worker %s has died; starting another", process.pid)
            self.processes[place] = Process(self.config, self.sockets)
            self.processes[place].start()
            self._starting[self.processes[place].pid] = time.monotonic()

    def _is_alive(self, process: Process) -> bool:
        began = self._starting.get(process.pid)
        if began is None:
            return process.is_alive(self.config.timeout_worker_healthcheck)
        if process.is_alive(ASK_S):
            del self._starting[process.pid]
            return True
        has_ended = not process.process.is_alive()
        if has_ended or time.monotonic() - began > START_S:
            del self._starting[process.pid]
            return False
        return True

    def _others_serve(self, process: Process) -> bool:
        return any(each.is_ready(1) for each in self.processes if each is not process)


def _forget(pid: int | None) -> None:
    """A worker that has ended is healthy no more, and has nothing under way: its gauges go from
    /metrics. What it had counted stays."""
    if pid is not None and SHARED_FOLDER in os.environ:
        with contextlib.suppress(OSError):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]


def run_workers(config: Config, listener: socket.socket) -> None:
    """Serve what comes to the ``listener`` until a signal."""
    listener.set_inheritable(True)
    with listener:
        Workers(config, [listener]).run()


def end_with_parent() -> None:
    """To be called by a worker: it gets SIGTERM when its parent ends, by kill -9 too. Else it would
    keep the port, and answer for a gateway that is stopped."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent.pid:
        sys.exit("the gateway has ended")
