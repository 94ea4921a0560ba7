"""`tidegate up`: what a user sees, and that it leaves nothing behind however it ends."""

import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import psutil
import pytest

from serving.triton.ports import free_ports
from tests.running import QUICK, launch, stop, wait_ready

REGIONS = Path("/dev/shm")


def _regions(pid: int) -> list[Path]:
    return list(REGIONS.glob(f"tidegate_{pid}_*"))


def test_the_curl_lines_work_when_pasted(stack):
    lines = re.findall(r"^  (curl .*)$", stack.output, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        run = subprocess.run(
            ["bash", "-c", f"{line} --fail"], cwd=stack.home, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        assert "embedding" in run.stdout or run.stdout.endswith("data: [DONE]\n\n")


def test_files_with_secrets_are_private(stack):
    state = stack.home / ".tidegate"
    for name in ("dev.key", "pepper", "triton.key", "keys.toml"):
        assert (state / name).stat().st_mode & 0o777 == 0o600, name
    assert stack.key not in (state / "keys.toml").read_text()
    assert stack.key.split("_")[2] not in (state / "keys.toml").read_text()


def test_triton_is_bound_to_loopback_and_its_repository_is_closed(stack):
    for path in ("v2/repository/index", "v2/logging", "v2/systemsharedmemory/status"):
        method = "POST" if "repository" in path else "GET"
        response = httpx.request(method, f"http://{stack.http_address}/{path}")
        assert response.status_code == 403, path
    addresses = {c.laddr.ip for c in stack.triton().net_connections() if c.status == "LISTEN"}
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_second_start_converts_nothing_and_a_signal_leaves_nothing(built, number):
    running = launch(built, *QUICK)
    wait_ready(running)
    assert "converting" not in running.output
    family = running.family()
    assert len(family) > 3
    assert _regions(running.process.pid)
    assert stop(running, number) == 0
    assert "stopped" in running.output
    assert not [p for p in family if p.is_running()]
    assert not _regions(running.process.pid)


def test_kill_9_of_the_command_leaves_no_process_and_the_next_start_cleans_up(built):
    running = launch(built, *QUICK)
    wait_ready(running)
    family = running.family()
    running.process.kill()
    running.process.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    again = launch(built, *QUICK)
    wait_ready(again)
    assert not _regions(running.process.pid)
    assert stop(again) == 0


def test_a_signal_while_starting_leaves_nothing(built):
    running = launch(built, *QUICK)
    deadline = time.monotonic() + 120
    while "starting Triton" not in running.output and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    family = running.family()
    assert family
    stop(running)
    assert not [p for p in family if p.is_running()]
    assert not _regions(running.process.pid)


@pytest.mark.parametrize("taken", [0, 1, 2, 3], ids=["gateway", "http", "grpc", "metrics"])
def test_a_port_that_is_taken(built, taken):
    ports = free_ports(4)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports[taken]))
        listener.listen()
        running = launch(built, *QUICK, ports=ports)
        assert running.process.wait(300) == 1
    lines = running.output.strip().splitlines()
    assert len(lines) == 1
    assert f"port {ports[taken]} is taken" in lines[0]
    assert "choose another with --" in lines[0]


def test_a_model_that_fails_to_load(built, tmp_path):
    shutil.copytree(built / "model_repository", tmp_path / "model_repository")
    broken = tmp_path / "model_repository" / "broken"
    (broken / "1").mkdir(parents=True)
    (broken / "1" / "model.onnx").write_bytes(b"this is no ONNX file")
    (broken / "config.pbtxt").write_text('backend: "onnxruntime"\nmax_batch_size: 0\n')
    running = launch(tmp_path, *QUICK, "broken", "--no-lint")
    assert running.process.wait(300) == 1
    last = running.output.strip().splitlines()[-1]
    assert last.startswith("tidegate: model broken failed to load")
    assert not _regions(running.process.pid)


def test_a_process_that_loses_a_race_at_its_start_is_started_once_more(tmp_path):
    """What Triton 2.51 does on a machine without idle cores, played by a model."""
    model = tmp_path / "model_repository" / "unlucky"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(
        'backend: "python"\n'
        'input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]\n'
        'output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]\n'
    )
    (model / "1" / "model.py").write_text(
        "import os\n"
        f"if not os.path.exists({str(tmp_path / 'seen')!r}):\n"
        f"    open({str(tmp_path / 'seen')!r}, 'w').close()\n"
        "    os.write(2, b'  what():  boost::interprocess::lock_exception\\n')\n"
        "    os.abort()\n"
        "class TritonPythonModel:\n"
        "    def execute(self, requests):\n"
        "        return []\n"
    )
    running = launch(tmp_path, "unlucky")
    try:
        wait_ready(running)
        assert "starting Triton once more" in running.output
    finally:
        assert stop(running) == 0


def test_a_config_that_does_not_parse(built, tmp_path):
    shutil.copytree(built / "model_repository", tmp_path / "model_repository")
    broken = tmp_path / "model_repository" / "broken"
    (broken / "1").mkdir(parents=True)
    (broken / "config.pbtxt").write_text("max_batch_size: many")
    running = launch(tmp_path, *QUICK, "broken")
    assert running.process.wait(300) == 1
    assert "would refuse these models" in running.output
    assert "'max_batch_size: many': Couldn't parse integer: many" in running.output
    assert "[config-broken]: correct that line of the file" in running.output


def test_an_unknown_pipeline(built):
    running = launch(built, "no_such_pipeline")
    assert running.process.wait(300) == 1
    assert "no model 'no_such_pipeline'" in running.output
    assert "text_embedding" in running.output
