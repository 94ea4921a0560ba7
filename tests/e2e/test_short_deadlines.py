"""Callers over gRPC whose deadlines are near a model's own time: Triton 2.51 dies when a cancel
meets the answer of the same call (server #8034), so the gateway must not pass theirs on."""

import random
import threading
import time

import numpy as np
import psutil
import pytest
from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from tests.e2e.grpc_models import ONE, instances, taking
from tests.e2e.pair import Pair, Running
from tests.running import wait_until

TAKES_S, SECONDS, CALLERS = 0.003, 8.0, 8


@pytest.fixture
def pair(tmp_path):
    with Pair(tmp_path, {"plain": (taking(TAKES_S), ONE + instances(4))}, servers=(0,)) as pair:
        yield pair


def test_triton_survives_deadlines_near_the_answer(pair):
    gateway = Running(pair, pair.addresses[:1])
    triton = psutil.Process(pair.servers[0].pid)
    answered, late = [], []
    try:
        wait_until(gateway.is_ready, 60, "the gateway is ready")
        headers = {name.lower(): value for name, value in gateway.headers().items()}
        until = time.monotonic() + SECONDS

        def call(seed: int) -> None:
            chance = random.Random(seed)  # noqa: S311 - nothing secret
            tensor = triton_grpc.InferInput("x", [1], "FP32")
            tensor.set_data_from_numpy(np.array([1], np.float32))
            with triton_grpc.InferenceServerClient(f"127.0.0.1:{gateway.grpc_port}") as client:
                while time.monotonic() < until:
                    # From less than the model's own time to what even a busy machine needs.
                    timeout_s = TAKES_S * chance.choice((1, 2, 4, 8, 16, 64))
                    try:
                        client.infer("plain", [tensor], headers=headers, client_timeout=timeout_s)
                        answered.append(timeout_s)
                    except InferenceServerException as error:
                        # Unavailable: refused at once, where it would have waited for too long.
                        if "UNAVAILABLE" not in str(error.status()):
                            assert "DEADLINE_EXCEEDED" in str(error.status())
                            late.append(timeout_s)

        threads = [threading.Thread(target=call, args=[seed]) for seed in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answered) > 50
        assert len(late) > 50
        assert triton.is_running()
        assert triton.status() != psutil.STATUS_ZOMBIE
        assert gateway.ask().status_code == 200
    finally:
        gateway.stop()
