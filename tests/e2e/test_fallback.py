"""On two real Tritons: a pipeline that fails everywhere is refused for a while, and its fallback
answers for it."""

import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from tritonclient import grpc as triton_grpc

from gateway.policy.principal import Grant
from gateway.upstream.circuits import OPEN_S
from tests.e2e.grpc_models import batched, endpoint
from tests.e2e.pair import POLICY, Pair, Running
from tests.running import wait_until
from tidegate.app.key_store import KeyStore

# y is x, plus 1000 of the spare; -1 is a failure, -2 what the model refuses as the client's error.
# While the file SICK is there, everything fails.
MODEL = """
import os
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        if x.item() == -2:
            error = pb_utils.TritonError("[tidegate:invalid_input] x must not be -2")
            return pb_utils.InferenceResponse(error=error)
        if x.item() == -1 or os.path.exists("SICK"):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("failed"))
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", x + x.dtype.type(MORE))])
"""
BATCHED = batched(8)


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    return tmp_path_factory.mktemp("sick") / "sick"


@pytest.fixture(scope="module")
def pair(tmp_path_factory, sick) -> Iterator[Pair]:
    first = MODEL.replace("SICK", str(sick)).replace("MORE", "0")
    spare = MODEL.replace("SICK", "/nothing").replace("MORE", "1000")
    models = {
        "first": (first, BATCHED + endpoint("y", description="Of the first.")),
        "spare": (spare, BATCHED + endpoint("y")),
        "narrow": (spare, BATCHED + endpoint("y", maximum=10)),
    }
    with Pair(tmp_path_factory.mktemp("pair"), models) as replicas:
        yield replicas


@pytest.fixture
def gateway(pair, sick) -> Iterator[Running]:
    sick.unlink(missing_ok=True)
    with Running(pair, TIDEGATE_PIPELINES="first,spare") as running:
        # The keys have the action admin, and no tenant's models restrict these: this one's own do.
        store = KeyStore(pair.work / "keys.toml", pair.work / "pepper")
        grant = Grant(tenant="two", models=("first",))
        running.keys["two"] = store.create(f"two-{time.monotonic_ns()}", grant)[1]
        wait_until(running.is_ready, 30, "the gateway is ready")
        wait_until(lambda: running.health() == ["up", "up"], 30, "both are asked")
        wait_until(
            lambda: running.ask(1, "first", tenant="two").status_code == 200, 30, "the new key"
        )
        yield running


def _fall_back(gateway: Running, fallback: str = "spare") -> None:
    gateway.put_policy(f'{POLICY}\n[pipelines.first]\nfallback = "{fallback}"')

    def is_in_force() -> bool:
        policy = gateway.admin("policy")["rules"]["pipelines"]
        return policy == {"first": {"fallback": fallback}}

    wait_until(is_in_force, 30, "the fallback")
    time.sleep(2)  # until the catalogue has been read once more


def _refused(gateway: Running, model: str = "first") -> dict[str, float]:
    models = {state["name"]: state for state in gateway.admin("models")["models"]}
    return models[model]["refused"]


def _until_refused(gateway: Running) -> Counter[int]:
    """Ask until the circuit is open; the statuses until then."""
    statuses: Counter[int] = Counter()
    while not _refused(gateway):
        statuses[gateway.ask(1, "first").status_code] += 1
        assert statuses.total() < 100, statuses
    return statuses


def test_what_fails_everywhere_is_refused_until_it_is_well_again(gateway, sick):
    sick.touch()
    assert set(_until_refused(gateway)) == {502}
    refused = gateway.ask(1, "first")
    assert refused.status_code == 503
    assert 1 <= int(refused.headers["retry-after"]) <= OPEN_S
    key_id = gateway.keys["one"].split("_")[1]
    assert set(_refused(gateway)) == {key_id}
    assert gateway.metrics('tidegate_circuits_opened_total{model="first"}')
    # Another caller's requests, and another pipeline's, are sent as before.
    assert gateway.ask(1, "first", tenant="two").status_code == 502
    assert gateway.ask(1, "spare").status_code == 200
    assert not _refused(gateway, "spare")
    sick.unlink()
    wait_until(lambda: gateway.ask(1, "first").status_code == 200, OPEN_S + 30, "it is tried again")
    assert {gateway.ask(1, "first").status_code for _ in range(20)} == {200}
    assert not _refused(gateway)


def test_a_clients_errors_open_nothing(gateway):
    statuses = Counter(gateway.ask(-2, "first").status_code for _ in range(60))
    assert statuses == {400: 60}
    wrong = {"name": "x", "datatype": "INT32", "shape": [1, 1], "data": [1]}
    for _ in range(30):
        response = gateway.client.post(
            "/v2/models/first/infer", json={"inputs": [wrong]}, headers=gateway.headers()
        )
        assert response.status_code == 400
    assert not _refused(gateway)
    assert gateway.ask(1, "first").status_code == 200


def test_a_caller_who_makes_a_model_fail_does_not_close_it_to_others(gateway):
    statuses = Counter(gateway.ask(-1, "first").status_code for _ in range(60))
    assert statuses[503] and set(statuses) == {502, 503}
    assert {gateway.ask(1, "first", tenant="two").status_code for _ in range(20)} == {200}


def test_its_fallback_answers_for_it_over_every_api_and_says_so(gateway, pair, sick):
    _fall_back(gateway)
    own = gateway.ask(1, "first")
    assert (own.json()["model_name"], own.json()["outputs"][0]["data"]) == ("first", [1])
    assert "x-tidegate-model" not in own.headers
    sick.touch()
    _until_refused(gateway)
    answered = gateway.ask(1, "first")
    assert answered.status_code == 200, answered.text
    assert answered.headers["x-tidegate-model"] == "spare"
    assert answered.json()["model_name"] == "spare"
    assert answered.json()["outputs"][0]["data"] == [1001]
    task = gateway.client.post("/v1/first", json={"x": 2}, headers=gateway.headers())
    assert (task.json(), task.headers["x-tidegate-model"]) == ({"y": 1002}, "spare")
    with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        tensor = triton_grpc.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.full((1, 1), 3, np.float32))
        response = client.infer("first", [tensor], headers=gateway.metadata())
    assert response.get_response().model_name == "spare"
    assert response.as_numpy("y").tolist() == [[1003]]
    count = 'tidegate_fallbacks_total{fallback="spare",model="first"}'
    assert gateway.metrics(count) == {count: 3}
    # What the spare refuses is the client's own error still.
    assert gateway.ask(-2, "first").status_code == 400
    # The other tenant has no right to the spare.
    statuses = Counter(gateway.ask(1, "first", tenant="two").status_code for _ in range(60))
    assert statuses[503] and not statuses[200], statuses
    sick.unlink()

    def is_its_own() -> bool:
        response = gateway.ask(1, "first")
        return response.status_code == 200 and "x-tidegate-model" not in response.headers

    wait_until(is_its_own, OPEN_S + 30, "it answers by itself")


def test_it_answers_for_one_that_no_server_has(gateway, pair):
    _fall_back(gateway)
    try:
        for server in pair.servers:
            server.control.unload("first")
        wait_until(lambda: gateway.ask(1, "first").status_code == 200, 30, "the spare answers")
        assert gateway.ask(1, "first").json()["model_name"] == "spare"
        assert gateway.ask(1, "first", tenant="two").status_code == 503
        task = gateway.client.post("/v1/first", json={"x": 2}, headers=gateway.headers())
        assert task.json() == {"y": 1002}
    finally:
        for server in pair.servers:
            server.control.load("first")
    wait_until(
        lambda: gateway.ask(1, "first").json().get("model_name") == "first", 30, "it is back"
    )


def test_one_with_another_endpoint_is_named_and_not_asked(gateway, pair, sick):
    _fall_back(gateway, "narrow")
    fault = "narrow cannot answer for first: request.properties.x.maximum is only in the fallback"
    wait_until(
        lambda: gateway.admin("models")["fallbacks"] == {"first": fault}, 30, "they are compared"
    )
    assert f"gateway.toml: pipelines.first.fallback: {fault}" in gateway.log.read_text()
    sick.touch()
    _until_refused(gateway)
    assert gateway.ask(1, "first").status_code == 503
