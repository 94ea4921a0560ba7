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
from uvicorn.supervisors.multiprocess import Multiprocess
from uvicorn.supervisors.multiprocess import Process as UvicornProcess

from gateway.draining import REPLACED, DrainingServer
from gateway.metrics import SHARED_FOLDER
from gateway.settings import Settings

log = logging.getLogger("gateway")
RETRY_S = 1.0
# The time for a worker's first response: on a busy machine its imports alone take longer than a
# running worker has to respond, and each worker that is killed for it makes the machine busier.
START_S, PING_S = 120.0, 0.5
REPLACE_S = 10.0  # for a replaced worker to end, after what its requests may take
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class Process(UvicornProcess):
    """A worker that drains before it ends."""

    @property
    def server(self) -> DrainingServer:
        if self._server is None:
            self._server = DrainingServer(self.config, Settings.read(os.environ).drain_notice_s)
        return self._server  # type: ignore[return-value]

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        # Before uvicorn's thread that answers the supervisor: if both made one, it would answer for
        # a server that never starts.
        _ = self.server
        super().target(sockets)

    def be_replaced(self) -> None:
        """Let the worker end; its successor serves already."""
        if self.pid is not None and self.process.is_alive():
            os.kill(self.pid, REPLACED)


class Workers(Multiprocess):
    """uvicorn's supervisor ends every worker when one cannot start: that is right at the first
    start, when none can, but wrong while others serve. Here that worker is retried."""

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.processes: list[Process] = []  # type: ignore[assignment]
        self._starting: dict[int | None, float] = {}  # pid -> start, until it serves
        self.none_starts = False  # which ended the gateway, and not a signal

    def run(self) -> None:
        """Until a signal, or until no worker can start. No fault of ours leaves workers behind."""
        try:
            super().run()
        except BaseException:
            self.terminate_all()
            self.join_all()
            raise

    def init_processes(self) -> None:
        for _ in range(self.processes_num):
            self.processes.append(Process(self.config, self.sockets))
            self.processes[-1].start()
        self._starting = {process.pid: time.monotonic() for process in self.processes}

    def restart_all(self) -> None:
        """After SIGHUP: replace one worker after the other. Each ends when its successor serves and
        its own requests are done; if a successor does not start, the others stay as they are. One
        that dies meanwhile is replaced as ever."""
        for index in range(len(self.processes)):
            if self._is_stopping():
                return
            new = Process(self.config, self.sockets)
            new.start()
            if not self._is_ready_in_time(new):
                new.kill()
                new.join()
                if not self._is_stopping():
                    stays = self.processes[index].pid
                    log.error("worker %s did not start; worker %s stays", new.pid, stays)
                return
            old, self.processes[index] = self.processes[index], new
            old.be_replaced()
            self._wait_for_end(old)
            if old.process.is_alive():
                old.kill()
            old.join()
            _forget(old.pid)
            log.info("worker %s has replaced worker %s", new.pid, old.pid)

    def _wait_for_end(self, old: Process) -> None:
        """As long as its requests may take. When the gateway is stopped meanwhile, the others are
        told at once: the time that they have is the same."""
        until = time.monotonic() + float(self.config.timeout_graceful_shutdown or 0) + REPLACE_S
        are_told = False
        while old.process.is_alive() and time.monotonic() < until:
            old.process.join(RETRY_S)
            if not self._is_stopping():
                self.keep_subprocess_alive()
            elif not are_told:
                self.terminate_all()
                are_told = True

    def _is_ready_in_time(self, process: Process) -> bool:
        """Whether a new worker serves before START_S, its own end, or that of the gateway."""
        until = time.monotonic() + START_S
        while not process.is_ready(PING_S):
            has_ended = not process.process.is_alive()
            if has_ended or self._is_stopping() or time.monotonic() > until:
                return False
            self.keep_subprocess_alive()
            time.sleep(RETRY_S / 10)
        return True

    def _is_stopping(self) -> bool:
        return self.should_exit.is_set() or bool(
            {signal.SIGTERM, signal.SIGINT} & {*self.signal_queue}
        )

    def keep_subprocess_alive(self) -> None:
        for index, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if self._is_alive(process):
                continue
            process.kill()  # it may hang
            process.join()
            _forget(process.pid)
            has_served = self._starting.pop(process.pid, None) is None
            if process.exitcode == STARTUP_FAILURE or (process.exitcode == 1 and not has_served):
                if not self._others_serve(process):
                    log.error("no worker can start (see above)")
                    self.none_starts = True
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
        if process.is_ready(PING_S):
            del self._starting[process.pid]
            return True
        return process.process.is_alive() and time.monotonic() - started <= START_S

    def handle_ttin(self) -> None:
        """Of uvicorn's own, which would add a worker that has no share of the limits."""
        log.warning("the number of workers is a setting: TIDEGATE_WORKERS")

    handle_ttou = handle_ttin

    def _others_serve(self, process: Process) -> bool:
        return any(other.is_ready(1) for other in self.processes if other is not process)


def _forget(pid: int | None) -> None:
    """Remove the gauges of a worker that has ended from /metrics: it is no longer healthy and has
    no requests in flight. Its counters stay."""
    if pid is not None and SHARED_FOLDER in os.environ:
        with contextlib.suppress(OSError):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]


def run_workers(config: Config, listener: socket.socket) -> bool:
    """Serve the connections to ``listener`` until a signal, which is True, or until no worker can
    start."""
    listener.set_inheritable(True)
    with listener:
        workers = Workers(config, [listener])
        workers.run()
    return not workers.none_starts


def end_with_parent() -> None:
    """Called by a worker: it gets SIGTERM when its parent ends, even by kill -9. Otherwise it would
    keep the port, and respond for a gateway that was stopped."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent.pid:
        sys.exit("the gateway has ended")
