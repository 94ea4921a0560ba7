"""Child processes: started whatever else this process does, and ended with it."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil
import pytest

from serving.triton import children
from tests.running import wait_until

STARTS = 100


@pytest.fixture
def busy_with_grpc():
    """Threads of this process that continuously open connections and call."""
    echo = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("e", {"E": echo}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ended = threading.Event()

    def call() -> None:
        while not ended.is_set():
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                assert channel.unary_unary("/e/E")(b"x", timeout=20) == b"x"

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(call) for _ in range(2)]
        yield
        ended.set()
    assert [future.result() for future in calls] == [None, None]
    server.stop(0).wait()


def test_a_child_never_runs_grpcs_fork_handlers(busy_with_grpc, tmp_path):
    """With them, one child in sixty was aborted before it ran the command."""
    log = tmp_path / "log"
    codes = [children.start(["true"], log=log.open("ab")).wait(60) for _ in range(STARTS)]
    assert codes == [0] * STARTS
    assert log.read_text() == ""


def test_a_child_is_the_command_itself_in_its_own_session():
    child = children.start(["sleep", "60"])
    wait_until(lambda: psutil.Process(child.pid).name() == "sleep", 30, "the command")
    assert os.getsid(child.pid) == child.pid
    children.end(child, 10)
    assert child.returncode == -signal.SIGTERM


def test_a_child_ends_when_its_parent_is_killed():
    code = (
        "import sys, time; from serving.triton import children; "
        "print(children.start(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        wait_until(lambda: child.name() == "sleep", 30, "the command")
        parent.kill()
    wait_until(lambda: not child.is_running() or child.status() == "zombie", 30, "its end")


def test_a_command_that_does_not_exist(tmp_path):
    log = tmp_path / "log"
    assert children.start(["/no/such/program"], log=log.open("ab")).wait(60) == 1
    assert "/no/such/program cannot be run: No such file" in log.read_text()


@pytest.mark.parametrize(
    ("earlier_log", "code", "expected"),
    [
        ("before: Error\n", "import sys; sys.exit(3)", "exit code 3"),
        ("", "print('INFO a'); raise ValueError('the port')", "says: ValueError: the port"),
        ("", "import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        (
            "",
            "import os; print('E1126 12:00:00 1 x.cc:1] no GPU', flush=True); os.abort()",
            "killed by SIGABRT; its log says: E1126 12:00:00 1 x.cc:1] no GPU",
        ),
    ],
)
def test_why_a_child_ended_is_read_from_what_it_wrote_itself(tmp_path, earlier_log, code, expected):
    log = tmp_path / "child.log"
    log.write_text(earlier_log)
    child = children.start([sys.executable, "-c", code], log=log.open("ab"))
    child.wait(30)
    assert expected in children.why_ended(child, log, len(earlier_log))
