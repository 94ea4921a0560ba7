"""`tidegate restart` on a real stack with two replicas, under load of REST and gRPC."""

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import Queue

import httpx
import numpy as np
import psutil
import pytest
from tritonclient import grpc as triton_grpc

from tests.back_to_back import PAUSE_S, back_to_back
from tests.e2e.grpc_models import HEAD, ONE, PLAIN, instances
from tests.running import environment, launch, stop, wait_ready, wait_until
from tests.serving.small_pipeline import NAME, publish_staged, stage

# Writes the server's pid when it begins, and answers once the file ``hold`` is gone.
HELD = """
import os
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        open(f"HOME/began-{os.getppid()}", "w").close()
        while os.path.exists("HOME/hold"):
            time.sleep(0.02)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", pb_utils.get_input_tensor_by_name(
                request, "x").as_numpy())])
            for request in requests
        ]
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    home = tmp_path_factory.mktemp("restart")
    repository = home / "model_repository"
    publish_staged(stage(repository, 0), repository)
    for model, code in (("slow", PLAIN), ("held", HELD.replace("HOME", str(home)))):
        version = repository / model / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(code)
        (version.parent / "config.pbtxt").write_text(HEAD + ONE + instances(1))
    running = launch(home, NAME, "slow", "held", "--replicas", "2", "--workers", "2")
    try:
        wait_ready(running)
        yield running
    finally:
        assert stop(running) == 0


def _pids(running):
    """The Tritons' processes, by the port on which each serves gRPC."""
    return {
        next(
            int(word.split("=")[1]) for word in process.cmdline() if word.startswith("--grpc-port")
        ): process.pid
        for process in running.family()
        if process.name() == "tritonserver" and process.status() != psutil.STATUS_ZOMBIE
    }


def _replicas(running):
    admin = f"http://127.0.0.1:{running.admin_port}/admin/replicas"
    replicas = httpx.get(admin, headers=running.headers, timeout=30).json()["replicas"]
    return {replica["address"].partition("/")[0]: replica for replica in replicas}


def _is_drained(running, address):
    """Whether it is, by all workers; None while they do not agree: each answers some of these."""
    drained = {_replicas(running)[address]["drained"] for _ in range(12)}
    return drained.pop() if len(drained) == 1 else None


def _tensors(seconds):
    """The input of a request that takes so long."""
    tensor = triton_grpc.InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.full(1, 1000 + seconds, np.float32))
    return [tensor]


def _metadata(running):
    return {"authorization": running.headers["Authorization"]}


def _over_rest(running, client):
    return client.post(f"{running.url}/v1/{NAME}", json={"x": 1}).status_code


def _over_grpc(running, client):
    response = client.infer("slow", _tensors(0.05), headers=_metadata(running))
    return int(response.as_numpy("y").shape == (1,)) and 200


class _Stream:
    """A gRPC stream that stays open, with one message after the other."""

    def __init__(self, running):
        self._running = running

    def __enter__(self):
        self._client = triton_grpc.InferenceServerClient(f"127.0.0.1:{self._running.grpc_api_port}")
        self._responses = Queue()
        self._client.start_stream(
            lambda result, error: self._responses.put(error or result),
            headers=_metadata(self._running),
        )
        return self

    def __exit__(self, *_):
        self._client.stop_stream()
        self._client.close()

    def ask(self):
        self._client.async_stream_infer("slow", _tensors(0.01))
        response = self._responses.get(timeout=30)
        if isinstance(response, Exception):
            raise response
        return 200


def test_every_replica_is_restarted_under_load_without_a_failed_request(pair, capsys):
    before = _pids(pair)
    assert len(before) == 2
    connect = partial(httpx.Client, headers=pair.headers, timeout=30)
    connect_grpc = partial(triton_grpc.InferenceServerClient, f"127.0.0.1:{pair.grpc_api_port}")
    with (
        back_to_back(partial(_over_rest, pair), connect, 2, PAUSE_S) as rest,
        back_to_back(partial(_over_grpc, pair), connect_grpc, 2, PAUSE_S) as grpc,
        back_to_back(_Stream.ask, partial(_Stream, pair), 2, PAUSE_S) as streams,
    ):
        for calls in (rest, grpc, streams):
            calls.more(20)
        run = pair.tidegate("restart", "--json")
        assert run.returncode == 0, run.stderr
        for calls in (rest, grpc, streams):
            calls.more(20)
    after = _pids(pair)
    assert set(after) == set(before) and not set(after.values()) & set(before.values())
    restarted = json.loads(run.stdout)
    assert [one["replica"] for one in restarted] == [f"127.0.0.1:{port}" for port in sorted(before)]
    assert all(one["proved"] == [NAME] for one in restarted)
    assert "draining: it gets no new requests" in run.stderr
    sent = sum(calls.sent for calls in (rest, grpc, streams))
    failed = sent - sum(calls.counts[200] for calls in (rest, grpc, streams))
    with capsys.disabled():
        sys.stdout.write(
            f"\nrolling restart: {sent} requests ({grpc.sent} over gRPC, {streams.sent} on its "
            f"streams), {failed} failed; away for "
            f"{' and '.join(str(one['away_s']) for one in restarted)} s\n"
        )
    assert failed == 0, (rest.counts, grpc.counts, streams.counts)
    assert pair.output.count("restarting Triton, as an operator has asked") == 2
    assert "Triton has ended" not in pair.output


def test_what_is_under_way_is_waited_for_and_not_ended(pair):
    port = min(_pids(pair))
    address, before = f"127.0.0.1:{port}", _pids(pair)[port]
    hold = pair.home / "hold"
    statuses, threads = [], []

    def ask():
        tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}
        response = httpx.post(
            f"{pair.url}/v2/models/held/infer",
            json={"inputs": [tensor]},
            headers=pair.headers,
            timeout=120,
        )
        statuses.append(response.status_code)

    def has_begun():
        """One more request, unless this replica works on one: which gets it is drawn."""
        if (pair.home / f"began-{before}").exists():
            return True
        threads.append(threading.Thread(target=ask))
        threads[-1].start()
        time.sleep(0.3)
        return False

    hold.touch()
    wait_until(has_begun, 30, "a request is under way there")
    run = pair.tidegate("restart", "--replica", "0", "--drain-timeout", "1s")
    assert run.returncode == 1
    assert "still has requests or sequences under way" in run.stderr
    assert "--drain-timeout" in run.stderr
    assert _pids(pair)[port] == before
    wait_until(lambda: _is_drained(pair, address) is False, 30, "the drain is lifted")
    with ThreadPoolExecutor(1) as pool:
        restarted = pool.submit(pair.tidegate, "restart", "--replica", "0")
        wait_until(lambda: _is_drained(pair, address), 60, "it is drained again")
        hold.unlink()
        run = restarted.result()
    assert run.returncode == 0, run.stderr
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
    assert _pids(pair)[port] != before


def test_a_drain_whose_command_was_killed_does_not_last(pair):
    """It is set for a minute; the command lifts it when it is stopped."""
    address = f"127.0.0.1:{max(_pids(pair))}"
    drain = f"http://127.0.0.1:{pair.admin_port}/admin/replicas/{address}/drain"
    assert httpx.put(f"{drain}?seconds=8", headers=pair.headers).json()["seconds"] == 8
    wait_until(lambda: _is_drained(pair, address), 30, "it is drained")
    assert _replicas(pair)[address]["reason"] == "is drained by an operator"
    wait_until(lambda: _is_drained(pair, address) is False, 30, "the drain is over")


def test_a_command_that_is_stopped_lifts_its_drain(pair):
    address = f"127.0.0.1:{max(_pids(pair))}"
    before = _pids(pair)
    wait_until(lambda: _is_drained(pair, address) is False, 30, "it is not drained")
    with back_to_back(
        partial(_over_grpc_slowly, pair),
        partial(triton_grpc.InferenceServerClient, f"127.0.0.1:{pair.grpc_api_port}"),
        2,
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", "tidegate", "restart", "--replica", "1"],
            env=environment(pair.home),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        wait_until(lambda: _is_drained(pair, address), 30, "it is drained")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    wait_until(lambda: _is_drained(pair, address) is False, 30, "it is lifted")
    assert _pids(pair) == before


def _over_grpc_slowly(running, client):
    client.infer("slow", _tensors(5.0), headers=_metadata(running))
    return 200


def test_what_cannot_be_restarted_is_refused(pair):
    run = pair.tidegate("restart", "--replica", "2")
    assert (run.returncode, "the stack has 2" in run.stderr) == (2, True), run.stderr
    policy = pair.home / ".tidegate" / "gateway.toml"
    first = f"127.0.0.1:{min(_pids(pair))}"
    try:
        policy.write_text(f'replicas = ["{first}"]\n# end\n')
        wait_until(lambda: set(_replicas(pair)) == {first}, 30, "one replica is used")
        run = pair.tidegate("restart", "--replica", "0")
        assert run.returncode == 1
        assert "no other replica that is up serves" in run.stderr and NAME in run.stderr
        run = pair.tidegate("restart", "--replica", "1")
        assert run.returncode == 1 and "the gateway does not use the replica" in run.stderr
    finally:
        policy.unlink()
