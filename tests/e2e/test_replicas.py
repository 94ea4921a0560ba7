"""Two real Tritons behind one gateway: one is killed, hangs or comes back; sequences stay
intact."""

import collections
import queue
import signal
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from tritonclient import grpc as triton_grpc

from serving.triton.ports import free_ports
from tests.e2e.grpc_models import (
    COUNTER,
    DECOUPLED,
    NOT_CANCELLABLE,
    ONE,
    PLAIN,
    SEQUENCE,
    TALLY,
    instances,
)
from tests.e2e.pair import DEADLINE_S, Pair, Running, load
from tests.running import wait_until

# A server is slow to start on a busy machine: sequences must not become idle meanwhile.
LONG_SEQUENCE = SEQUENCE.replace("30000000", "300000000").replace("sequences: 8", "sequences: 16")
MODELS = {
    "plain": (PLAIN, ONE + instances(2)),
    "only_second": (PLAIN, ONE),
    "short": (PLAIN, ONE + NOT_CANCELLABLE),
    "counter": (COUNTER, ONE + DECOUPLED),
    "tally": (TALLY, LONG_SEQUENCE),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[Pair]:
    with Pair(tmp_path_factory.mktemp("pair"), MODELS) as replicas:
        yield replicas


@pytest.fixture(scope="module")
def gateway(pair) -> Iterator[Running]:
    with Running(pair, pair.addresses_with_http) as running:
        wait_until(running.is_ready, 30, "the gateway is ready")
        yield running


@pytest.fixture(autouse=True)
def _both_are_up(gateway) -> None:
    gateway.heal()


def _value(response: httpx.Response) -> float:
    assert response.status_code == 200, response.text
    return response.json()["outputs"][0]["data"][0]


@pytest.mark.parametrize("dead", [0, 1])
def test_a_killed_replica_gets_no_requests(pair, gateway, dead):
    assert gateway.ask().status_code == 200
    pair.kill(dead)
    statuses = [gateway.ask(client=None).status_code for _ in range(30)]
    assert statuses.count(200) >= 29, statuses
    with load(gateway, 4) as many:
        wait_until(lambda: sum(many.values()) >= 200, 30, "200 requests")
    assert set(many) == {200}
    for path in ("", "/config", "/stats", "/ready"):
        assert gateway.get(f"/v2/models/plain{path}").status_code == 200
    replica = gateway.replicas()[dead]
    assert (replica["health"], replica["reason"]) == ("down", "cannot be reached")
    addresses = [replica["address"] for replica in gateway.replicas()]
    assert gateway.metrics("tidegate_replica_healthy{") == {
        f'tidegate_replica_healthy{{replica="{address}"}}': float(index != dead)
        for index, address in enumerate(addresses)
    }


def _streams(gateway: Running) -> None:
    body = {"x": 3}
    response = gateway.client.post(
        "/v2/models/counter/generate_stream", json=body, headers=gateway.headers()
    )
    assert response.status_code == 200, response.text
    assert response.text.count("data: ") == 3, response.text


def test_every_api_avoids_a_dead_replica(pair, gateway):
    """HTTP/1.1 to Triton, streams and gRPC, although the killed server's children keep its
    sockets."""
    assert gateway.ask(model="short").status_code == 200
    pair.signal(0, signal.SIGKILL)  # its children survive
    statuses = [gateway.ask(model="short").status_code for _ in range(30)]
    assert statuses.count(200) >= 29, statuses
    for _ in range(10):
        _streams(gateway)
    tensor = triton_grpc.InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.array([5], np.float32))
    headers = gateway.metadata()
    with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        for _ in range(10):
            result = client.infer("plain", [tensor], headers=headers)
            assert result.as_numpy("y")[0] == 5
        assert client.is_server_ready(headers=headers)
        assert client.get_model_config("plain", headers=headers).config.name == "plain"
        assert client.is_model_ready("plain", headers=headers)
    pair.stop(0)


def test_a_restarted_replica_is_used_once_it_has_its_models(pair, gateway):
    pair.kill(0)
    wait_until(lambda: gateway.health() == ["down", "up"], 30, "the first is down")
    with load(gateway, 2) as responses:
        pair.start(0)
        wait_until(lambda: gateway.health() == ["up", "up"], 30, "the first is back")
        before = sum(responses.values())
        wait_until(lambda: sum(responses.values()) > before + 50, 30, "more answers")
    assert set(responses) == {200}


def test_a_gateway_that_starts_while_the_first_is_dead(pair, gateway):
    pair.kill(0)
    with Running(pair) as late:
        wait_until(late.is_ready, 30, "it is ready")
        assert {late.ask().status_code for _ in range(30)} == {200}
        assert late.get("/v2/models/plain/config").status_code == 200


def test_without_replicas_requests_fail_at_once_and_nothing_is_ready(pair, gateway):
    with Running(pair, [f"127.0.0.1:{port}" for port in free_ports(2)]) as late:
        wait_until(late.listens, 30, "it runs")
        ready = late.client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
        assert late.get("/v2/health/ready").status_code == 503


def test_a_replica_that_hangs_costs_little_and_comes_back(pair, gateway):
    pair.signal(0, signal.SIGSTOP)
    try:
        with load(gateway, 4) as responses:
            wait_until(lambda: gateway.health() == ["down", "up"], 30, "it is found")
            assert gateway.replicas()[0]["reason"] == "does not respond"
            before = collections.Counter(responses)
            time.sleep(DEADLINE_S)
            bad = {k: v for k, v in (responses - before).items() if k != 200}
        # Only the requests it had when it was found end at their deadline.
        assert sum(bad.values()) <= 4, responses
        assert responses[200] > 100
        assert [gateway.ask().status_code for _ in range(20)] == [200] * 20
        assert gateway.get("/v2/models/plain/config").status_code == 200
        assert gateway.is_ready()
    finally:
        pair.signal(0, signal.SIGCONT)
    wait_until(lambda: gateway.health() == ["up", "up"], 30, "it is back")


def test_every_api_avoids_a_hung_replica(pair, gateway):
    pair.signal(0, signal.SIGSTOP)
    try:
        wait_until(lambda: gateway.health() == ["down", "up"], 30, "it is found")
        for _ in range(10):
            assert gateway.ask(model="short").status_code == 200
            _streams(gateway)
    finally:
        pair.signal(0, signal.SIGCONT)


def test_a_model_on_one_replica_is_called_there(gateway):
    assert {gateway.ask(model="only_second").status_code for _ in range(30)} == {200}
    for path in ("", "/config", "/stats", "/ready"):
        assert gateway.get(f"/v2/models/only_second{path}").status_code == 200


def test_a_model_whose_only_replica_is_dead_is_not_unknown(pair, gateway):
    pair.kill(1)
    wait_until(lambda: gateway.health() == ["up", "down"], 30, "the second is down")
    response = gateway.ask(model="only_second")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_load_is_not_death(gateway):
    """Requests of 3 s on every instance: the checks continue, and the replicas stay up."""
    with load(gateway, 8, x=1003):
        end = time.monotonic() + 5
        while time.monotonic() < end:
            assert gateway.health() == ["up", "up"]
            time.sleep(0.2)


def test_a_failing_model_does_not_shut_a_replica_out(gateway):
    """Anyone can make a request fail: that must not take a server away from others. As many are
    answered, so that the caller's own circuit stays closed."""
    for _ in range(20):
        assert gateway.ask(-2).status_code == 502
        assert gateway.ask().status_code == 200
    assert gateway.health() == ["up", "up"]
    assert {gateway.ask().status_code for _ in range(20)} == {200}


def test_tritons_reason_is_in_the_log_with_the_request_id(gateway):
    for x, words in ((-2, r"told to fail\nin two lines"), (-1, "raised at /root/model.bin")):
        response = gateway.ask(x)
        assert response.status_code == 502
        assert "told" not in response.text and "/root" not in response.text
        identifier = response.headers["x-request-id"]
        lines = [line for line in gateway.log.read_text().splitlines() if identifier in line]
        assert len(lines) == 1, lines
        assert words in lines[0]


def test_sequences_stay_intact_under_load(gateway):
    """Each sums up 1 to 6; two tenants use the same ids."""
    with load(gateway, 3):
        for identifier in range(1, 7):
            for x in range(1, 7):
                for tenant, factor in (("one", 1), ("two", 10)):
                    response = gateway.step(
                        identifier, factor * x, tenant=tenant, start=x == 1, end=x == 6
                    )
                    assert _value(response) == factor * sum(range(x + 1))


def test_sequences_on_a_grpc_stream_go_where_they_are(gateway):
    """Four, interleaved, on one stream; started there or over HTTP, they end over HTTP."""
    started, identifiers = (601, 602), range(601, 605)
    for identifier in started:
        assert _value(gateway.step(identifier, 1, start=True)) == 1
    responses: queue.Queue = queue.Queue()
    headers = gateway.metadata()
    with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        client.start_stream(lambda result, error: responses.put((result, error)), headers=headers)
        for x in range(1, 5):
            for identifier in identifiers:
                if identifier in started and x == 1:
                    continue
                tensor = triton_grpc.InferInput("x", [1, 1], "FP32")
                tensor.set_data_from_numpy(np.array([[x]], np.float32))
                client.async_stream_infer(
                    "tally",
                    [tensor],
                    request_id=f"{identifier}-{x}",
                    sequence_id=identifier,
                    sequence_start=x == 1,
                )
        results = {}
        for _ in range(4 * 4 - 2):
            result, error = responses.get(timeout=30)
            assert error is None, error
            results[result.get_response().id] = result.as_numpy("y").item()
        client.stop_stream()
    for identifier in identifiers:
        for x in range(2, 5):
            assert results[f"{identifier}-{x}"] == sum(range(x + 1))
        assert _value(gateway.step(identifier, 5, end=True)) == 15


def test_a_stream_cannot_hold_every_slot_either(gateway):
    responses: queue.Queue = queue.Queue()
    headers = gateway.metadata()
    tensor = triton_grpc.InferInput("x", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.array([[1]], np.float32))
    with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        client.start_stream(lambda result, error: responses.put((result, error)), headers=headers)
        for identifier in range(700, 740):
            client.async_stream_infer(
                "tally", [tensor], sequence_id=identifier, sequence_start=True
            )
        errors = [
            str(error) for _, error in (responses.get(timeout=30) for _ in range(40)) if error
        ]
        client.stop_stream()
    assert len(errors) == 40 - 2 * 8
    assert all("quota_exceeded" in error for error in errors), errors
    assert _value(gateway.step(1, 7, tenant="two", start=True, end=True)) == 7
    for identifier in range(700, 740):
        gateway.step(identifier, 1, end=True)


def test_the_id_0_is_no_sequence(gateway):
    """Triton refuses it for a sequence model; it never matches another's sequence."""
    assert _value(gateway.step(77, 3, start=True)) == 3
    response = gateway.step(0, 1)
    assert response.status_code == 400, response.text
    assert _value(gateway.step(77, 3, end=True)) == 6


def test_a_sequence_whose_server_died_is_lost_and_says_so(pair, gateway):
    identifiers = range(200, 208)
    for identifier in identifiers:
        assert _value(gateway.step(identifier, 1, start=True)) == 1
    pair.kill(0)
    wait_until(lambda: gateway.health() == ["down", "up"], 30, "the first is down")
    responses = {identifier: gateway.step(identifier, 2) for identifier in identifiers}
    kept = [identifier for identifier, response in responses.items() if response.status_code == 200]
    lost = [identifier for identifier in identifiers if identifier not in kept]
    assert all(_value(responses[identifier]) == 3 for identifier in kept)
    for identifier in lost:
        assert responses[identifier].status_code == 502, responses[identifier].text
        assert "start the sequence again" in responses[identifier].json()["error"]
    # Started anew, it is on the other replica, and stays there when the first is back.
    for identifier in lost:
        assert _value(gateway.step(identifier, 10, start=True)) == 10
    pair.start(0)
    wait_until(lambda: gateway.health() == ["up", "up"], 30, "the first is back")
    for identifier in lost:
        assert _value(gateway.step(identifier, 5)) == 15
    for identifier in identifiers:
        gateway.step(identifier, 0, end=True)


def test_a_sequence_whose_server_was_restarted_is_lost_too(pair, gateway):
    identifiers = range(300, 306)
    for identifier in identifiers:
        gateway.step(identifier, 1, start=True)
    pair.kill(0)
    pair.start(0)
    wait_until(lambda: gateway.health() == ["up", "up"], 30, "the first is back")
    responses = [gateway.step(number, 2, end=True) for number in identifiers]
    for response in responses:
        if response.status_code != 200:
            assert response.status_code == 400
            assert "send sequence_start with its first request" in response.json()["error"]
        else:
            assert _value(response) == 3


def test_one_tenant_cannot_hold_every_slot(gateway):
    """tally has 16 slots on each server: a tenant has at most 8 of them."""
    refused = []
    for identifier in range(400, 440):
        response = gateway.step(identifier, 1, start=True)
        if response.status_code != 200:
            assert response.status_code == 429, response.text
            assert int(response.headers["retry-after"]) >= 1
            refused.append(identifier)
    assert len(refused) == 40 - 2 * 8
    for identifier in range(5):
        response = gateway.step(500 + identifier, 7, tenant="two", start=True, end=True)
        assert _value(response) == 7
    started = [number for number in range(400, 440) if number not in refused]
    for identifier in started:
        assert _value(gateway.step(identifier, 1, end=True)) == 2
    for identifier in started:
        assert gateway.step(identifier, 1, start=True, end=True).status_code == 200
