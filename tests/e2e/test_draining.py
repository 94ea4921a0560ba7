"""A gateway that is stopped, or whose workers are replaced, fails no request."""

import collections
import contextlib
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import numpy as np
import psutil
import pytest
from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from tests.e2e.grpc_models import ONE, instances
from tests.e2e.pair import Pair, Running
from tests.running import wait_until

# y is x; what is above 1000 takes x - 1000 seconds, and leaves a file when it begins.
MODEL = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        if x.item() > 1000:
            open(f"HOME/began-{x.item():g}", "w").close()
            time.sleep(x.item() - 1000)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", x)])
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    home = tmp_path_factory.mktemp("draining")
    models = {"plain": (MODEL.replace("HOME", str(home)), ONE + instances(4))}
    with Pair(home, models, servers=(0,)) as pair:
        yield pair


def _ask_grpc(client: triton_grpc.InferenceServerClient, gateway: Running, x: float) -> float:
    tensor = triton_grpc.InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.array([x], np.float32))
    answer = client.infer("plain", [tensor], headers=gateway.metadata(), client_timeout=60)
    return float(answer.as_numpy("y")[0])


def _grpc_status(gateway: Running) -> bytes:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        return channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20)


def _workers(gateway: Running) -> set[int]:
    """Those that run: one that has ended is a zombie until its parent looks."""
    found = set()
    for child in psutil.Process(gateway.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if any("multiprocessing.spawn" in part for part in child.cmdline()):
                found.add(child.pid)
    return found


def _is_unready(gateway: Running) -> bool:
    """By all workers: each answers some of these."""
    url = f"{gateway.client.base_url}/readyz"
    return all(httpx.get(url).status_code == 503 for _ in range(8))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_gateway_is_unready_first_and_finishes_what_is_under_way(pair, workers):
    gateway = Running(
        pair,
        pair.addresses[:1],
        TIDEGATE_WORKERS=str(workers),
        TIDEGATE_DEADLINE_S="20",
        TIDEGATE_DRAIN_NOTICE_S="4",
    )
    wait_until(gateway.is_ready, 60, "the gateway is ready")
    address = f"127.0.0.1:{gateway.grpc_port}"
    slow_http, slow_grpc = 1005 + workers / 8, 1005 + workers / 16
    with (
        ThreadPoolExecutor(2) as pool,
        httpx.Client(base_url=gateway.client.base_url, timeout=20) as client,
        triton_grpc.InferenceServerClient(address) as grpc_client,
    ):
        answers = [
            pool.submit(gateway.ask, slow_http, client=client),
            pool.submit(_ask_grpc, grpc_client, gateway, slow_grpc),
        ]
        for x in (slow_http, slow_grpc):
            wait_until((pair.home / f"began-{x:g}").exists, 30, "the slow request runs")
        gateway.process.terminate()
        wait_until(lambda: _is_unready(gateway), 30, "every worker is unready")
        late = gateway.ask(1)
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        assert _grpc_status(gateway) == b"\x08\x02"  # NOT_SERVING
        assert answers[0].result().status_code == 200
        assert answers[1].result() == slow_grpc
        assert gateway.process.wait(30) == 0
    gateway.client.close()


def test_workers_are_replaced_under_load_without_a_failed_request(pair):
    gateway = Running(pair, pair.addresses[:1], TIDEGATE_WORKERS="2")
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    stopped = threading.Event()

    def over_http() -> None:
        with httpx.Client(base_url=gateway.client.base_url, timeout=20) as client:
            while not stopped.is_set():
                try:
                    outcome = str(gateway.ask(1, client=client).status_code)
                except httpx.TransportError as error:
                    outcome = repr(error)
                counts["http", outcome] += 1

    def over_grpc() -> None:
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{gateway.grpc_port}") as client:
            while not stopped.is_set():
                try:
                    outcome = str(_ask_grpc(client, gateway, 1))
                except InferenceServerException as error:
                    outcome = str(error)
                counts["grpc", outcome] += 1
                time.sleep(0.005)

    try:
        wait_until(gateway.is_ready, 60, "the gateway is ready")
        before = _workers(gateway)
        threads = [threading.Thread(target=work) for work in (over_http, over_http, over_grpc)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: counts.total() > 50, 30, "fifty answers")
            gateway.process.send_signal(signal.SIGHUP)
            wait_until(
                lambda: len(_workers(gateway)) == 2 and not _workers(gateway) & before,
                240,
                "both are replaced",
            )
            so_far = counts.total()
            wait_until(lambda: counts.total() > so_far + 50, 30, "fifty more")
        finally:
            stopped.set()
            for thread in threads:
                thread.join()
        failed = counts.total() - counts["http", "200"] - counts["grpc", "1.0"]
        sys.stdout.write(f"{counts.total()} requests sent, {failed} failed\n")
        assert set(counts) == {("http", "200"), ("grpc", "1.0")}, counts
    finally:
        gateway.stop()
