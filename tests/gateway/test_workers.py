"""Several workers of one gateway: which of them is killed, and when."""

import signal
import socket
import subprocess
import sys

import pytest
from uvicorn import Config

from gateway import workers
from gateway.workers import Workers
from serving.triton.ports import free_ports
from tests.running import ROOT, environment


class Worker:
    """A running worker, which responds or not."""

    def __init__(self, pid, *, answers):
        self.pid, self.answers, self.is_killed, self.exitcode = pid, answers, False, -9
        self.process = self
        self.is_ending, self.is_told, self.on_join = False, False, lambda: None

    def is_alive(self, timeout=None):
        """Without a timeout: whether the process runs; with one: whether it also responds."""
        return not self.is_killed and (timeout is None or self.answers)

    def kill(self):
        self.is_killed = True

    def start(self):
        pass

    def join(self, timeout=None):
        self.on_join()

    def is_ready(self, timeout):
        return self.answers and not self.is_killed

    def be_replaced(self):
        self.is_ending = True

    def terminate(self):
        self.is_told = True


@pytest.fixture
def supervisor(monkeypatch):
    started = []

    def start_worker(config, sockets):
        started.append(Worker(100 + len(started), answers=False))
        return started[-1]

    monkeypatch.setattr(workers, "Process", start_worker)
    monkeypatch.setattr("uvicorn.supervisors.multiprocess.Process", start_worker)
    with socket.socket() as listener:
        supervisor_ = Workers(Config("none:none", workers=2), [listener])
        supervisor_.init_processes()
        yield supervisor_


def test_a_worker_that_starts_slowly_is_not_killed_and_one_that_served_is(supervisor, monkeypatch):
    first, second = supervisor.processes
    for _ in range(3):
        supervisor.keep_subprocess_alive()
    assert supervisor.processes == [first, second]
    first.answers = True
    supervisor.keep_subprocess_alive()
    first.answers = False
    supervisor.keep_subprocess_alive()
    assert first.is_killed
    assert not second.is_killed
    monkeypatch.setattr(workers, "START_S", 0.0)
    supervisor.keep_subprocess_alive()
    assert second.is_killed
    assert supervisor.processes[0] is not first


def test_a_worker_that_dies_while_another_is_replaced_is_replaced_too(supervisor, monkeypatch):
    """The one that is replaced may finish its requests for half a minute."""
    first, second = supervisor.processes
    for worker in (first, second):
        worker.answers = True
    supervisor.keep_subprocess_alive()
    joins = 0

    def a_second_passes() -> None:
        nonlocal joins
        joins += 1
        second.is_killed = True  # by the kernel
        if joins == 3:
            first.is_killed = True  # it has finished

    first.on_join = a_second_passes
    monkeypatch.setattr(supervisor, "_is_ready_in_time", lambda new: True)
    monkeypatch.setattr(workers, "REPLACE_S", 0.5)
    supervisor.restart_all()
    assert first.is_ending
    assert not second.is_ending  # it was dead, and what took its place was replaced in turn
    assert {first, second}.isdisjoint(supervisor.processes)
    assert all(not worker.is_killed for worker in supervisor.processes)


def test_the_others_are_told_at_once_if_the_gateway_is_stopped_while_one_is_replaced(
    supervisor, monkeypatch
):
    first, second = supervisor.processes
    for worker in (first, second):
        worker.answers = True
    supervisor.keep_subprocess_alive()
    told = []

    def a_second_passes() -> None:
        supervisor.signal_queue.append(signal.SIGTERM)
        told.append([worker.is_told for worker in supervisor.processes])
        if len(told) == 3:
            first.is_killed = True  # its requests are done

    first.on_join = a_second_passes
    monkeypatch.setattr(supervisor, "_is_ready_in_time", lambda new: True)
    supervisor.restart_all()
    assert told == [[False, False], [True, True], [True, True], [True, True]]
    assert second in supervisor.processes


@pytest.mark.parametrize(("code", "has_served"), [(1, False), (3, False), (3, True)])
def test_if_no_worker_can_start_the_gateway_ends_with_a_failure(supervisor, code, has_served):
    first = supervisor.processes[0]
    if has_served:
        first.answers = True
        supervisor.keep_subprocess_alive()
    first.is_killed, first.exitcode = True, code
    supervisor.keep_subprocess_alive()
    assert supervisor.should_exit.is_set()
    assert supervisor.none_starts


def test_a_worker_that_served_and_failed_is_replaced(supervisor):
    first = supervisor.processes[0]
    first.answers = True
    supervisor.keep_subprocess_alive()
    first.is_killed, first.exitcode = True, 1
    supervisor.keep_subprocess_alive()
    assert supervisor.processes[0] is not first
    assert not supervisor.none_starts


def test_the_number_of_workers_is_a_setting_and_no_signal_changes_it(supervisor):
    before = [*supervisor.processes]
    for number in (signal.SIGTTIN, signal.SIGTTOU):
        supervisor.signal_queue.append(number)
        supervisor.handle_signals()
    assert supervisor.processes == before


def test_a_gateway_that_cannot_start_says_so_by_its_exit_code(tmp_path):

    def ended(**variables: str) -> subprocess.CompletedProcess[str]:
        port, grpc_port = free_ports(2)
        settings = {
            "TIDEGATE_GATEWAY_PORT": str(port),
            "TIDEGATE_GRPC_PORT": str(grpc_port),
            "TIDEGATE_WORKERS": "2",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "gateway"]
        return subprocess.run(
            command,
            env={**environment(tmp_path), **settings, **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )

    no_file = ended(TIDEGATE_PEPPER_FILE=str(tmp_path))  # a folder: read by each worker
    assert no_file.returncode == 3, no_file.stderr
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as another gateway's workers
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name in ("TIDEGATE_GRPC_PORT", "TIDEGATE_ADMIN_PORT"):
            shared = ended(**{name: str(port)})
            assert shared.returncode == 2
            assert f"cannot listen on 127.0.0.1:{port}" in shared.stderr
