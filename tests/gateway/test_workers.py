"""Several workers of one gateway: which of them is killed, and when."""

import socket

import pytest
from uvicorn import Config

from gateway import workers
from gateway.workers import Workers


class Worker:
    """A running worker, which responds or not."""

    def __init__(self, pid, *, answers):
        self.pid, self.answers, self.is_killed, self.exitcode = pid, answers, False, -9
        self.process = self
        self.is_ending, self.on_join = False, lambda: None

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
        return True

    def be_replaced(self):
        self.is_ending = True


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


def test_a_worker_that_dies_while_another_is_replaced_is_replaced_too(supervisor):
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
    for worker in (first, second):
        worker.is_ready = lambda timeout: True
    supervisor.restart_all()
    assert first.is_ending
    assert not second.is_ending  # it was dead, and what took its place was replaced in turn
    assert {first, second}.isdisjoint(supervisor.processes)
    assert all(not worker.is_killed for worker in supervisor.processes)
