"""A shadow on two real Tritons: what is compared and counted, over every API, and that no caller
ever waits for it (incident 15 of others: a mirror that slows the primary)."""

import contextlib
import signal
import sys
import time

import httpx
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from tests.back_to_back import back_to_back
from tests.e2e.grpc_models import (
    NOT_CANCELLABLE,
    SEQUENCE,
    TALLY,
    batched,
    endpoint,
    golden,
    instances,
)
from tests.e2e.pair import POLICY, Pair, Running
from tests.running import wait_until

# y is x plus ADD; above 1000 it takes x - 1000 seconds, and the shadow fails for x < 0.
MODEL = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        if x.max() > 1000:
            time.sleep(x.max() - 1000)
        if x.min() < 0 and ADD:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("told to fail"))
        y = np.where(x == 7, x + ADD, x + ADD / 1e7)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", y.astype(np.float32))])
"""
CONFIG = batched(4) + instances(2)
MODELS = {
    "plain": (MODEL.replace("ADD", "0"), CONFIG + endpoint("y") + golden(1, y=1)),
    "short": (MODEL.replace("ADD", "0"), CONFIG + NOT_CANCELLABLE),
    "tally": (TALLY, SEQUENCE),
    "only_second": (MODEL.replace("ADD", "1"), CONFIG),  # the shadow
}
SHADOWS = "".join(
    f'[shadows.{name}]\nto = "only_second"\npercent = 100\n' for name in ("plain", "short", "tally")
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The pipelines on the first server, their shadow on the second one."""
    with Pair(tmp_path_factory.mktemp("shadow"), MODELS) as servers:
        for name in ("plain", "short", "tally"):
            servers.servers[1].control.unload(name)
        yield servers


@pytest.fixture(scope="module")
def gateway(pair):
    with Running(pair, pair.addresses_with_http) as running:
        wait_until(running.is_ready, 60, "the gateway is ready")
        wait_until(lambda: running.models() == [3, 1], 30, "the models are known")
        running.put_policy(POLICY + SHADOWS)
        wait_until(
            lambda: running.admin("policy")["rules"].get("shadows"), 30, "the shadows are in force"
        )
        yield running


def _counts(gateway, model="plain") -> dict[str, int]:
    """By result."""
    samples = gateway.metrics("tidegate_shadow_requests_total{")
    return {
        result: round(
            samples.get(
                f'tidegate_shadow_requests_total{{model="{model}",result="{result}",'
                'shadow="only_second"}',
                0,
            )
        )
        for result in ("agrees", "differs", "failed", "dropped")
    }


@contextlib.contextmanager
def _counted(gateway, model="plain", **expected: int):
    """The block makes these results, and no others."""
    before = _counts(gateway, model)
    yield
    goal = {result: count + expected.get(result, 0) for result, count in before.items()}
    wait_until(lambda: _counts(gateway, model) == goal, 30, f"{goal}")


def test_responses_of_every_api_are_compared_within_the_tolerance(gateway):
    with _counted(gateway, agrees=4):  # one ten-millionth apart
        assert gateway.ask(1).status_code == 200
        assert gateway.ask(1, parameters={"binary_data_output": True}).status_code == 200
        rows = {"inputs": [{"x": 1}, {"x": 2}]}
        response = gateway.client.post("/v1/plain", json=rows, headers=gateway.headers())
        assert response.status_code == 200
        with InferenceServerClient(gateway.grpc_address) as client:
            tensor = InferInput("x", [1, 1], "FP32").set_data_from_numpy(
                np.array([[3]], np.float32)
            )
            client.infer("plain", [tensor], headers=gateway.metadata(), request_id="mine")
    with _counted(gateway, "short", agrees=2):  # over HTTP/1.1
        assert gateway.ask(1, "short").status_code == 200
        parameters = {"binary_data_output": True}
        assert gateway.ask(1, "short", parameters=parameters).status_code == 200
    for arm in ("primary", "shadow"):
        count = f'tidegate_shadow_seconds_count{{arm="{arm}",model="plain",shadow="only_second"}}'
        assert gateway.metrics(count) == {count: 4}


def test_what_differs_or_fails_is_counted_as_that_and_no_caller_sees_it(gateway):
    with _counted(gateway, differs=1):
        assert gateway.ask(7).json()["outputs"][0]["data"] == [7]
    with _counted(gateway, failed=1):
        assert gateway.ask(-1).json()["outputs"][0]["data"] == [-1]
    with _counted(gateway, "short", differs=1):
        assert gateway.ask(7, "short").json()["outputs"][0]["data"] == [7]
    wait_until(lambda: "the elements of output 'y'" in gateway.log.read_text(), 30, "a line")


def test_sequences_versions_and_refused_requests_have_no_shadow(gateway):
    before = [_counts(gateway, model) for model in ("plain", "tally")]
    for flags in ({"start": True}, {}, {"end": True}):
        assert gateway.step(5, 1, **flags).status_code == 200
    response = gateway.client.post(
        "/v2/models/plain/versions/1/infer",
        json={"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]},
        headers=gateway.headers(),
    )
    assert response.status_code == 200
    assert gateway.ask("x").status_code == 400
    time.sleep(0.5)
    assert [_counts(gateway, model) for model in ("plain", "tally")] == before


def _latencies(gateway, count=300) -> np.ndarray:
    seconds = []
    with httpx.Client(base_url=gateway.client.base_url, timeout=20) as client:
        for _ in range(count):
            started = time.perf_counter()
            assert gateway.ask(1, client=client).status_code == 200
            seconds.append(time.perf_counter() - started)
    return np.array(seconds)


def test_incident_15_a_shadow_that_hangs_slows_nobody(pair, gateway):
    """apisix#6536 and ingress-nginx#10116: a mirror that was slow halved the primary's rate."""
    _latencies(gateway, 50)
    before = _latencies(gateway)
    pair.signal(1, signal.SIGSTOP)
    try:
        during = _latencies(gateway)
        counts = _counts(gateway)
    finally:
        pair.signal(1, signal.SIGCONT)
    quantiles = [
        1000 * np.quantile(times, share) for times in (before, during) for share in (0.5, 0.99)
    ]
    sys.stdout.write(
        "p50 and p99 {:.1f} and {:.1f} ms; with a shadow that hangs {:.1f} and {:.1f} ms".format(
            *quantiles
        )
        + f"; 300 sent, 0 failed; {counts}\n"
    )
    # It costs nothing: while it works the shadow takes a part of the machine.
    assert np.median(during) < 2 * np.median(before) + 0.005
    assert np.quantile(during, 0.99) < 3 * np.quantile(before, 0.99) + 0.1
    assert counts["dropped"] > 100
    wait_until(lambda: gateway.health() == ["up", "up"], 30, "the second one is back")

    def agrees() -> bool:
        before = _counts(gateway)["agrees"]
        gateway.ask(1)
        time.sleep(0.1)
        return _counts(gateway)["agrees"] > before

    wait_until(agrees, 30, "responses are compared again")


def test_while_there_is_a_queue_nothing_is_shadowed(gateway):
    with back_to_back(
        lambda client: gateway.ask(1000.02, client=client).status_code,
        lambda: httpx.Client(base_url=gateway.client.base_url, timeout=20),
        100,
    ) as calls:
        wait_until(lambda: calls.counts.total() > 500, 30, "a queue")
        before, sent_before = _counts(gateway), calls.counts.total()
        wait_until(lambda: calls.counts.total() > sent_before + 200, 30, "200 requests")
        after = _counts(gateway)
    # On a busy machine some could not be answered in time, and are told so at once.
    assert set(calls.counts) <= {200, 503}
    assert calls.counts[200] > 0.95 * calls.counts.total()
    dropped = after["dropped"] - before["dropped"]
    sent = sum(after.values()) - sum(before.values()) - dropped
    sys.stdout.write(f"with a queue {sent} were shadowed and {dropped} dropped\n")
    assert dropped > 10 * sent


def test_a_shadow_that_is_not_there_fails_alone(pair, gateway):
    pair.kill(1)
    try:
        wait_until(lambda: gateway.health()[1] != "up", 30, "it is noticed")
        before = _counts(gateway)
        assert [gateway.ask(1).status_code for _ in range(20)] == [200] * 20
        time.sleep(0.3)
        assert _counts(gateway)["agrees"] == before["agrees"]
    finally:
        pair.start(1)
