"""A server that polls takes no processor while others are measured."""

import sys
import time

import psutil
import pytest

from loadtests.own_stack.processes import start
from tests.running import wait_until

POLLING = "import time\nprint('up', flush=True)\nwhile True: time.sleep(0.0001)"


@pytest.fixture
def server(tmp_path):
    server = start("polling", [sys.executable, "-c", POLLING], {}, tmp_path / "log")
    wait_until(lambda: "up" in server.tail(), 20, "it starts")
    yield server
    server.stop()
    server.process.wait()


def test_it_runs_only_while_it_is_resumed(server):
    process = psutil.Process(server.process.pid)

    def wait_stopped(is_stopped: bool) -> None:
        wait_until(
            lambda: (process.status() == psutil.STATUS_STOPPED) is is_stopped,
            20,
            f"stopped: {is_stopped}",
        )

    with server.paused():
        wait_stopped(True)
        before = process.cpu_times()
        time.sleep(0.3)
        assert process.cpu_times() == before
        with server.resumed():
            wait_until(lambda: process.cpu_times() != before, 20, "it runs")
        wait_stopped(True)
    wait_stopped(False)
