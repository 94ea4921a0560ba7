"""`tidegate up --replicas 2`: each Triton is started, watched, shown and ended."""

import json
from functools import partial

import httpx
import psutil
import pytest

from tests.back_to_back import PAUSE_S, back_to_back
from tests.running import launch, stop, wait_ready, wait_until

# y is x; 99 ends the process, as a crash does.
MODEL = """
import os
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        if x.item() == 99:
            os._exit(1)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", x)])
"""
CONFIG = """
backend: "python"
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    home = tmp_path_factory.mktemp("replicas")
    version = home / "model_repository" / "plain" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    running = launch(home, "plain", "--replicas", "2")
    try:
        wait_ready(running)
        yield running
    finally:
        family = running.family()
        assert stop(running) == 0
        assert not [process for process in family if _is_alive(process)]


def _is_alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _load(running):
    """Clients that call back to back; counts the responses by status."""
    connect = partial(httpx.Client, headers=running.headers, timeout=30)
    return back_to_back(partial(_ask, running), connect, 2, PAUSE_S)


def _ask(running, client, x=1.0):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [x]}
    url = f"{running.url}/v2/models/plain/infer"
    return client.post(url, json={"inputs": [tensor]}).status_code


def _tritons(running):
    """The Tritons that are alive, by the gRPC port on which each listens."""
    return {
        next(
            int(word.split("=")[1]) for word in process.cmdline() if word.startswith("--grpc-port")
        ): process
        for process in running.family()
        if process.name() == "tritonserver" and process.status() != psutil.STATUS_ZOMBIE
    }


def _replicas(running):
    admin = f"http://127.0.0.1:{running.admin_port}/admin/replicas"
    return httpx.get(admin, headers=running.headers, timeout=30).json()["replicas"]


def _serve(running):
    """Whether both replicas serve the model."""
    return all(
        replica["health"] == "up" and "plain" in replica["models"] for replica in _replicas(running)
    )


def test_both_are_served_and_shown(pair):
    ports = [pair.grpc_port, pair.grpc_port + 10]
    assert sorted(_tritons(pair)) == ports
    assert [replica["address"].partition("/")[0] for replica in _replicas(pair)] == [
        f"127.0.0.1:{port}" for port in ports
    ]
    status = json.loads(pair.tidegate("status", "--json").stdout)
    assert (status["state"], status["triton"]) == ("healthy", "")
    assert status["replicas"] == {f"127.0.0.1:{port}": "" for port in ports}
    assert {server["state"] for server in status["servers"].values()} == {"serving"}
    for port in ports:
        assert f": starting Triton 127.0.0.1:{port} ..." in pair.output
    shown = pair.tidegate("status").stdout
    for port in ports:
        assert f"grpc 127.0.0.1:{port}" in shown
        assert f"grpc 127.0.0.1:{port}" in pair.output
    for log in ("triton.log", "triton.1.log"):
        assert (pair.home / ".tidegate" / "logs" / log).stat().st_size > 0


@pytest.mark.parametrize("number", [0, 1])
def test_one_that_is_killed_costs_no_request_and_comes_back(pair, number):
    port = pair.grpc_port + 10 * number
    wait_until(lambda: _serve(pair), 30, "both are asked")
    with _load(pair) as calls:
        calls.more(50)
        killed = _tritons(pair)[port]
        killed.kill()
        wait_until(lambda: not _serve(pair), 30, "it is missed")
        wait_until(lambda: _serve(pair), 120, "it gets requests again")
        calls.more(50)
    # What was under way on it when it was killed may fail: one request of each client.
    assert calls.counts.total() - calls.counts[200] <= 2, calls.counts
    assert set(calls.counts) <= {200, 502, 503}
    assert f"replica 127.0.0.1:{port}: Triton has ended" in pair.output


def test_a_process_that_ends_is_revived_on_its_replica_alone(pair):
    wait_until(lambda: _serve(pair), 30, "both are asked")
    before = {stub.pid for stub in pair.stubs("plain")}
    assert len(before) == 2
    with httpx.Client(headers=pair.headers, timeout=30) as client:
        assert _ask(pair, client, 99) in (502, 503, 504)
        wait_until(
            lambda: (
                len(before & {stub.pid for stub in pair.stubs("plain")}) == 1
                and len(pair.stubs("plain")) == 2
            ),
            60,
            "it is revived",
        )
        # The new process is there before it has loaded its model.
        wait_until(lambda: {_ask(pair, client) for _ in range(20)} == {200}, 60, "all answer")
    log = (pair.home / ".tidegate" / "logs" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in log]
    healed = [event for event in events if event["event"] == "process_died"]
    assert {event["replica"] for event in healed} < {
        f"127.0.0.1:{pair.grpc_port}",
        f"127.0.0.1:{pair.grpc_port + 10}",
    }
