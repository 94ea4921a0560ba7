"""What an operator sees besides requests: status, logs, a second stack, leftovers."""

import contextlib
import json
import re
import signal
import threading

import httpx
import psutil
import pytest

from tests.echoing import add_models
from tests.running import launch, stop, wait_ready, wait_until

HEALTHY, UNHEALTHY, NOTHING = 0, 1, 3
LOG_BYTES, OLDER = 64 * 1024, 2
# time, level, the worker's process, and the message
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) (\d+) (.+)")


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory):
    """A stack of two workers, with short logs and its own temporary folder."""
    home = tmp_path_factory.mktemp("operation")
    add_models(home)
    (home / "tmp").mkdir()
    flags = ("--workers=2", f"--log-bytes={LOG_BYTES}", f"--log-files={OLDER}")
    running = launch(home, "echo_llm", *flags, TMPDIR=str(home / "tmp"))
    try:
        wait_ready(running)
        yield running
    finally:
        stop(running)


def _status(stack):
    run = stack.tidegate("status", "--json")
    return run.returncode, json.loads(run.stdout)


def _log(stack):
    return stack.home / ".tidegate" / "logs" / "gateway.log"


def _gateway(stack):
    return next(p for p in stack.family() if p.cmdline()[-2:] == ["-m", "gateway"])


def _workers(stack):
    """The process ids of the gateway's workers."""
    return {p.pid for p in _gateway(stack).children() if "spawn_main" in " ".join(p.cmdline())}


def test_the_status_of_a_running_stack(own_stack):
    code, status = _status(own_stack)
    assert (code, status["state"]) == (HEALTHY, "healthy")
    assert status["running"]["pid"] == own_stack.process.pid
    assert status["running"]["url"] == own_stack.url
    assert status["versions"] == {"echo_llm": [1], "identity_fp32": [1]}
    assert status["pipelines"]["echo_llm"] == "unproved"
    assert status["running"]["grpc"] == f"127.0.0.1:{own_stack.grpc_api_port}"
    assert status["running"]["phase"] == ""
    assert str(_log(own_stack)) in status["running"]["logs"]
    output = own_stack.tidegate("status").stdout
    assert output.startswith("healthy, since 20")
    assert "echo_llm: version 1" in output
    assert own_stack.key not in output


def test_the_status_of_a_hung_stack_is_an_error(own_stack):
    triton = own_stack.triton()
    triton.send_signal(signal.SIGSTOP)
    try:
        code, status = _status(own_stack)
    finally:
        triton.send_signal(signal.SIGCONT)
    assert (code, status["state"]) == (UNHEALTHY, "unhealthy")
    assert "not answer" in status["triton"]
    wait_until(lambda: _status(own_stack)[0] == HEALTHY, 60, "healthy again")


def test_a_second_stack_in_the_same_home_is_refused_in_one_line(own_stack):
    before = own_stack.output
    second = launch(own_stack.home, "echo_llm")
    code = second.process.wait(300)
    output = second.output
    (own_stack.home / "up.log").write_text(before)
    assert code == 1
    assert len(output.strip().splitlines()) == 1
    assert f"{own_stack.home} (process {own_stack.process.pid}, {own_stack.url}, since 20" in output
    assert _status(own_stack)[0] == HEALTHY


def test_every_worker_logs_in_the_same_format_with_the_request_id(own_stack):
    failed = own_stack.post("/v2/models/echo_llm/generate", json={"text_input": "[fail]"})
    assert failed.status_code == 502
    identifier = failed.headers["x-request-id"]
    wait_until(lambda: identifier in _log(own_stack).read_text(), 30, "the line")
    lines = [LINE.fullmatch(line) for line in _log(own_stack).read_text().splitlines()]
    assert lines
    assert all(lines)
    workers = _workers(own_stack)
    assert len(workers) == 2
    assert workers <= {int(line[2]) for line in lines if line[1] == "INFO"}
    (mine,) = [line for line in lines if identifier in line[0]]
    assert mine[1] == "WARNING"
    assert int(mine[2]) in workers
    assert mine[3].startswith(f"{identifier} upstream ")
    assert own_stack.key not in _log(own_stack).read_text()


def test_logs_are_rotated_while_their_writers_continue(own_stack):
    log = _log(own_stack)
    for _ in range(OLDER + 2):  # more rotations than files are kept
        with log.open("ab") as file:
            file.write((b"x" * 99 + b"\n") * (LOG_BYTES // 100 + 2))
        wait_until(lambda: log.stat().st_size < LOG_BYTES, 30, "rotation")
    failed = own_stack.post("/v2/models/echo_llm/generate", json={"text_input": "[fail]"})
    wait_until(lambda: failed.headers["x-request-id"] in log.read_text(), 30, "the line")
    older = sorted(path.name for path in log.parent.glob("gateway.log.*"))
    assert older == [f"gateway.log.{number + 1}" for number in range(OLDER)]
    assert log.with_name("gateway.log.1").read_bytes().startswith(b"x" * 99)


def test_the_inflight_gauge_of_a_killed_worker_is_removed(own_stack):
    """Otherwise its gauges would keep their last values forever."""

    def under_way():
        text = httpx.get(
            f"http://127.0.0.1:{own_stack.admin_port}/metrics",
            headers=own_stack.headers,
            timeout=30,
        ).text
        values = re.findall(r"^tidegate_replica_inflight{.*} ([\d.]+)$", text, re.MULTILINE)
        return sum(map(float, values))

    body = {"text_input": "[delay 1] a b c d e f g h i j"}
    calls = [threading.Thread(target=_post_until_killed, args=(own_stack, body)) for _ in range(6)]
    before = _workers(own_stack)
    for call in calls:
        call.start()
    try:
        wait_until(lambda: under_way() >= 1, 30, "requests under way")
        for pid in before:
            psutil.Process(pid).kill()
    finally:
        for call in calls:
            call.join()
    wait_until(lambda: not any(map(psutil.pid_exists, before)), 60, "their ends")
    wait_until(lambda: _status(own_stack)[0] == HEALTHY, 90, "healthy again")
    wait_until(lambda: under_way() == 0, 30, "nothing under way")


def _post_until_killed(stack, body):
    with contextlib.suppress(httpx.TransportError):
        stack.post("/v2/models/echo_llm/generate", json=body)


def test_a_gateway_that_is_killed_leaves_no_worker_and_no_folder(own_stack):
    folders = list((own_stack.home / "tmp").glob("tidegate-metrics-*"))
    assert len(folders) == 1
    gateway, workers = _gateway(own_stack), _workers(own_stack)
    gateway.kill()
    wait_until(lambda: not any(map(psutil.pid_exists, workers)), 30, "the workers' end")
    wait_until(lambda: _status(own_stack)[0] == HEALTHY, 90, "another gateway")
    assert "the gateway ended unexpectedly (killed by SIGKILL" in own_stack.output
    leftovers = list((own_stack.home / "tmp").glob("tidegate-metrics-*"))
    assert len(leftovers) == 1
    assert leftovers != folders


def test_a_gateway_comes_back_while_a_model_is_slow_to_load(own_stack):
    """The echo model's process ends, and loading it again takes as long as ``hold`` exists."""
    hold = own_stack.home / "hold"
    hold.touch()
    model = own_stack.home / "model_repository" / "echo_llm" / "1" / "model.py"
    waits = f"while os.path.exists({str(hold)!r}):\n            time.sleep(0.05)\n        "
    model.write_text(model.read_text().replace("self.made =", f"{waits}self.made =", 1))
    try:
        own_stack.stubs("echo_llm")[0].kill()
        wait_until(
            lambda: "still loading echo_llm" in own_stack.output, 60, "a load that takes long"
        )
        count_before = own_stack.output.count("the gateway ended unexpectedly")
        gateway = _gateway(own_stack)
        gateway.kill()
        wait_until(
            lambda: own_stack.output.count("the gateway ended unexpectedly") > count_before,
            30,
            "notice",
        )
        wait_until(lambda: _is_answering(own_stack, "/healthz"), 60, "another gateway")
        assert "revived echo_llm" not in own_stack.output
    finally:
        hold.unlink()
    wait_until(lambda: _status(own_stack)[0] == HEALTHY, 90, "healthy again")


def _is_answering(stack, path):
    try:
        return stack.get(path).status_code == 200
    except httpx.TransportError:
        return False


def test_a_stop_leaves_nothing_and_the_status_says_so(own_stack):
    """Must be last: it stops the stack."""
    assert stop(own_stack) == 0, own_stack.output
    assert list((own_stack.home / "tmp").iterdir()) == []
    assert _status(own_stack) == (NOTHING, {"state": "stopped", "home": str(own_stack.home)})


def test_a_lint_error_ends_the_start_before_triton(tmp_path):
    add_models(tmp_path)
    (tmp_path / "model_repository" / "echo_llm" / "1" / "model.py").unlink()
    running = launch(tmp_path, "echo_llm")
    assert running.process.wait(300) == 1
    assert "echo_llm/1: " in running.output
    assert "looks for model.py, but there is nothing [file-missing]: put model.py" in running.output
    assert "--no-lint" in running.output
    assert "starting Triton" not in running.output
