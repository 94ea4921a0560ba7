"""The response cache in front of a real Triton: which requests it answers, over every API, and what
it must never do."""

import contextlib
import json
import re
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from gateway.response_cache.cache import CONFIRM_S
from gateway.response_cache.redis_store import PAUSE_S
from modelspec.parameters import DETERMINISTIC_PARAMETER
from tests.e2e.grpc_models import (
    NOT_CANCELLABLE,
    SEQUENCE,
    TALLY,
    endpoint,
    golden,
    parameter,
)
from tests.e2e.pair import POLICY, Pair, Running
from tests.gateway.limits.redis_server import RedisServer
from tests.running import wait_until

# y is x times the model's version, and asked how many rows this process was asked for until now:
# equal answers with equal counts are one answer. It takes x - 1000 seconds, and refuses x < 0.
COUNTING = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.version, self.asked = int(args["model_version"]), 0

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        self.asked += 1
        asked = np.full_like(x, self.asked)
        if x.max() > 1000:
            time.sleep(x.max() - 1000)
        if x.min() < 0:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("told to fail"))
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("y", x * self.version), pb_utils.Tensor("asked", asked)])
"""
TENSORS = """
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
output { name: "asked" data_type: TYPE_FP32 dims: 1 }
"""
# y is x, or while there is a file SICK x + 100.
SICK = """
import os
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("y", x + 100 * os.path.exists("HOME/sick")),
             pb_utils.Tensor("asked", x)])
"""
DETERMINISTIC = parameter(DETERMINISTIC_PARAMETER, "true")
CACHED = TENSORS + endpoint("y", "asked") + DETERMINISTIC
MODELS = {
    "counting": (COUNTING, CACHED),
    "short": (COUNTING, TENSORS + NOT_CANCELLABLE + DETERMINISTIC),
    "sick": (SICK, CACHED + golden(1, y=1)),
    "undeclared": (COUNTING, TENSORS),
    "tally": (TALLY, SEQUENCE + DETERMINISTIC),
    "versions": (COUNTING, TENSORS + DETERMINISTIC),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    home = tmp_path_factory.mktemp("cache")
    models = {
        name: (code.replace("HOME", str(home)), config) for name, (code, config) in MODELS.items()
    }
    with Pair(home, models, servers=(0,)) as servers:
        yield servers


@contextlib.contextmanager
def _running(pair, **variables):
    replicas = pair.addresses_with_http[:1]
    with Running(pair, replicas, **{"TIDEGATE_CACHE_MIB": "8", **variables}) as running:
        wait_until(running.is_ready, 60, "the gateway is ready")
        yield running


@pytest.fixture(scope="module")
def gateway(pair):
    with _running(pair) as running:
        yield running


_numbers = iter(range(1, 900))


@pytest.fixture
def x() -> float:
    """An input that no other test sends."""
    return float(next(_numbers))


def _post(gateway, x, model="counting", tenant="one", headers=None, client=None, **body):
    return gateway.ask(x, model, tenant, client, headers, **body)


def _over_grpc(gateway, x):
    with InferenceServerClient(gateway.grpc_address) as client:
        tensor = InferInput("x", [1, 1], "FP32").set_data_from_numpy(np.array([[x]], np.float32))
        return client.infer("counting", [tensor], headers=gateway.metadata(), request_id="mine")


def _outputs(response) -> dict[str, float]:
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"][0] for output in response.json()["outputs"]}


def _cache(headers) -> str:
    """What the response's Server-Timing says of the cache; '' if it says nothing."""
    said = re.search(r"cache;desc=(\w+)", headers["server-timing"])
    return said[1] if said else ""


def _count(gateway, model: str, result: str) -> float:
    labels = f'tidegate_cache_requests_total{{model="{model}",result="{result}"}}'
    return gateway.metrics(labels).get(labels, 0)


def test_every_api_gets_the_response_that_the_first_one_got(gateway, x):
    hits = _count(gateway, "counting", "hit")
    first = _post(gateway, x, id="first")
    assert _cache(first.headers) == "miss" and first.json()["id"] == "first"
    expected = _outputs(first)
    assert expected["y"] == x

    again = _post(gateway, x)
    assert (_cache(again.headers), _outputs(again)) == ("hit", expected)
    assert "id" not in again.json()
    assert "queue" not in again.headers["server-timing"]  # nothing was sent

    binary = _post(gateway, x, parameters={"binary_data_output": True})
    assert _cache(binary.headers) == "hit"
    assert binary.content.endswith(np.array([expected["y"], expected["asked"]], "<f4").tobytes())

    headers = gateway.headers()
    task = gateway.client.post("/v1/counting", json={"x": x}, headers=headers)
    assert (_cache(task.headers), task.json()) == ("hit", expected)

    result = _over_grpc(gateway, x)
    assert result.get_response().id == "mine"
    assert {name: result.as_numpy(name).item() for name in expected} == expected
    assert _count(gateway, "counting", "hit") == hits + 4


def test_grpc_fills_the_cache_too(gateway, x):
    result = _over_grpc(gateway, x)
    response = _post(gateway, x, id="other")
    assert _cache(response.headers) == "hit" and response.json()["id"] == "other"
    assert _outputs(response)["asked"] == result.as_numpy("asked").item()


def test_of_many_rows_those_that_are_known_are_not_asked_again(gateway):
    rows = [{"x": float(next(_numbers))} for _ in range(6)]  # two batches: four and two
    headers = gateway.headers()
    first = gateway.client.post("/v1/counting", json={"inputs": rows}, headers=headers)
    second = gateway.client.post("/v1/counting", json={"inputs": rows}, headers=headers)
    changed = [*rows[:4], {"x": 0.5}, rows[5]]
    third = gateway.client.post("/v1/counting", json={"inputs": changed}, headers=headers)
    assert [_cache(response.headers) for response in (first, second, third)] == [
        "miss",
        "hit",
        "miss",
    ]
    outputs = first.json()["outputs"]
    assert [output["y"] for output in outputs] == [row["x"] for row in rows]
    assert second.json() == first.json()
    assert third.json()["outputs"][:4] == outputs[:4]
    assert [output["y"] for output in third.json()["outputs"][4:]] == [0.5, rows[5]["x"]]
    assert third.json()["outputs"][5]["asked"] > outputs[5]["asked"]  # its batch is another one


def test_what_differs_is_another_request(gateway, x):
    first = _outputs(_post(gateway, x))
    variants = [
        _post(gateway, x, tenant="two"),
        _post(gateway, x, outputs=[{"name": "asked"}, {"name": "y"}]),
        _post(gateway, x, parameters={"temperature": 1}),
        _post(gateway, x + 0.5),
        _post(gateway, x, model="short"),
    ]
    assert [_cache(response.headers) for response in variants] == ["miss"] * 5
    counts = [_outputs(response)["asked"] for response in variants[:4]]
    assert len({first["asked"], *counts}) == 5


def test_a_model_that_is_called_over_http_is_cached_as_well(gateway, x):
    first, second = (_post(gateway, x, model="short") for _ in range(2))
    assert (_cache(first.headers), _cache(second.headers)) == ("miss", "hit")
    assert first.json()["outputs"] == second.json()["outputs"]


@pytest.mark.parametrize(
    ("value", "results"),
    [("no-store", ["", "hit"]), ("no-cache", ["miss", "hit"]), ("No-Cache, No-Store", ["", "hit"])],
)
def test_cache_control_is_honoured(gateway, x, value, results):
    first = _outputs(_post(gateway, x))
    fresh = _post(gateway, x, headers={"Cache-Control": value})
    later = _post(gateway, x)
    assert [_cache(response.headers) for response in (fresh, later)] == results
    assert _outputs(fresh)["asked"] > first["asked"]
    kept = _outputs(fresh) if results[0] else first  # what no-cache fetched is kept
    assert _outputs(later) == kept


def test_no_store_stores_nothing(gateway, x):
    for _ in range(2):
        assert _cache(_post(gateway, x, headers={"Cache-Control": "no-store"}).headers) == ""
    assert _cache(_post(gateway, x).headers) == "miss"


def test_models_that_do_not_declare_it_and_sequences_are_never_cached(gateway, x):
    counts = [_outputs(_post(gateway, x, model="undeclared"))["asked"] for _ in range(2)]
    assert counts[0] < counts[1]
    assert _cache(_post(gateway, x, model="undeclared").headers) == ""
    sums = [gateway.step(7, x, start=True), gateway.step(7, x), gateway.step(7, x, end=True)]
    assert [_outputs(response)["y"] for response in sums] == [x, 2 * x, 3 * x]
    # A model without sequences is asked nevertheless: the parameter may mean something to it.
    for _ in range(2):
        assert _cache(_post(gateway, x, parameters={"sequence_id": 5}).headers) == ""


def test_errors_are_never_kept(gateway, x):
    before = _outputs(_post(gateway, x))["asked"]
    refusals = [_post(gateway, -x) for _ in range(3)]
    assert {response.status_code for response in refusals} == {502}
    assert {_cache(response.headers) for response in refusals} == {"miss"}
    assert _outputs(_post(gateway, x + 0.25))["asked"] == before + 4


def test_equal_requests_at_a_time_are_one(gateway):
    def ask(_):
        with httpx.Client(base_url=gateway.client.base_url, timeout=20) as client:
            return _post(gateway, 1001, client=client)

    with ThreadPoolExecutor(20) as threads:
        responses = list(threads.map(ask, range(20)))
    assert len({json.dumps(_outputs(response)) for response in responses}) == 1
    results = [_cache(response.headers) for response in responses]
    assert results.count("miss") == 1 and "shared" in results, results
    assert set(results) <= {"miss", "shared", "hit"}


@pytest.mark.parametrize("leaves", ["disconnects", "expires"])
def test_when_the_first_of_them_gives_up_the_others_are_answered(gateway, leaves):
    seconds = 1001.5 if leaves == "disconnects" else 1001.75
    before = _outputs(_post(gateway, float(next(_numbers))))["asked"]
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [seconds]}]}
    if leaves == "expires":
        body["parameters"] = {"timeout": 500_000}
    text = json.dumps(body)
    head = (
        f"POST /v2/models/counting/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n"
        f"Authorization: {gateway.headers()['Authorization']}\r\n\r\n"
    )
    leader = socket.create_connection(("127.0.0.1", gateway.port))
    leader.sendall((head + text).encode())
    time.sleep(0.2)
    responses = []

    def follow():
        with httpx.Client(base_url=gateway.client.base_url, timeout=20) as client:
            responses.append(_post(gateway, seconds, client=client))

    threads = [threading.Thread(target=follow) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    if leaves == "disconnects":
        leader.close()
    else:
        assert b"504" in leader.recv(1000).splitlines()[0]
        leader.close()
    for thread in threads:
        thread.join(30)
    assert [response.status_code for response in responses] == [200] * 4
    assert len({_outputs(response)["asked"] for response in responses}) == 1
    assert _outputs(responses[0])["asked"] <= before + 2  # one of them took over for all


def test_a_hit_needs_no_server(pair, gateway, x):
    first = _outputs(_post(gateway, x))
    pair.signal(0, signal.SIGSTOP)
    try:
        response = _post(gateway, x)
    finally:
        pair.signal(0, signal.SIGCONT)
    assert _outputs(response) == first


def _serve(pair, *versions: int) -> None:
    folder = pair.options[0].repository.path / "versions"
    for version in versions:
        (folder / str(version)).mkdir(exist_ok=True)
        (folder / str(version) / "model.py").write_text(COUNTING)
    text = 'backend: "python"\n' + MODELS["versions"][1]
    listed = ", ".join(map(str, versions))
    (folder / "config.pbtxt").write_text(
        f"{text}version_policy {{ specific {{ versions: [{listed}] }} }}\n"
    )
    pair.servers[0].control.load("versions")


def test_another_version_never_gets_an_older_ones_responses(pair, gateway, x):
    def answered() -> tuple[float, str]:
        response = _post(gateway, x, model="versions")
        return _outputs(response)["y"], response.json()["model_version"]

    late = []
    for version in (1, 2, 1, 3, 2):
        _serve(pair, version)
        started = time.perf_counter()
        wait_until(
            lambda version=version: answered() == (version * x, str(version)), 30, "the version"
        )
        late.append(time.perf_counter() - started)
        assert {answered() for _ in range(5)} == {(version * x, str(version))}
        wait_until(
            lambda: _cache(_post(gateway, x, model="versions").headers) == "hit", 30, "a hit"
        )
        assert answered() == (version * x, str(version))
    sys.stdout.write(f"a version's first response after at most {max(late):.2f} s\n")
    _serve(pair, 1, 2)  # which of two answers is not known before
    wait_until(lambda: _cache(_post(gateway, x, model="versions").headers) == "", 30, "both")


def test_what_a_sick_model_answered_does_not_outlive_its_sickness(pair, gateway, x):
    """Its golden answer is wrong a second later: what it said before that is not given again."""
    (pair.home / "sick").touch()
    try:
        assert _outputs(_post(gateway, x, model="sick"))["y"] == x + 100
        wait_until(
            lambda: _cache(_post(gateway, x, model="sick").headers) == "", 30, "it is distrusted"
        )
    finally:
        (pair.home / "sick").unlink()
    wait_until(
        lambda: _cache(_post(gateway, x, model="sick").headers) == "hit", 30, "it is trusted again"
    )
    assert _outputs(_post(gateway, x, model="sick"))["y"] == x


def test_gateways_share_what_redis_has_and_never_wait_for_it(pair, x):
    redis = RedisServer()
    try:
        with (
            _running(pair, TIDEGATE_CACHE_REDIS_URL=redis.url) as one,
            _running(pair, TIDEGATE_CACHE_REDIS_URL=redis.url) as two,
        ):
            two.keys = one.keys

            numbers = [float(next(_numbers)) for _ in range(20)]
            expected = [_outputs(_post(one, number)) for number in numbers]
            with redis.client() as client:
                wait_until(lambda: client.dbsize() >= 20, CONFIRM_S + 20, "they are in Redis")
            shared = []
            for number in numbers:
                shared.append(_post(two, number))
                if _cache(shared[-1].headers) == "miss":  # on a busy machine Redis may be late
                    time.sleep(PAUSE_S)
            results = [_cache(response.headers) for response in shared]
            assert "redis" in results, results
            for response, result, outputs in zip(shared, results, expected, strict=True):
                assert result == "miss" or _outputs(response) == outputs
            assert _cache(_post(two, numbers[0]).headers) == "hit"
            medians = []
            for part, ails in ((32, lambda: None), (64, redis.freeze), (128, redis.kill)):
                ails()
                seconds = []
                for number in range(20):
                    started = time.perf_counter()
                    response = _post(two, x + (2 * number + 1) / part)
                    seconds.append(time.perf_counter() - started)
                    assert _cache(response.headers) == "miss" and response.status_code == 200
                medians.append(np.median(seconds))
            assert max(medians[1:]) < 3 * medians[0] + 0.1
    finally:
        redis.kill()


def test_without_the_setting_nothing_is_cached(pair, x):
    with _running(pair, TIDEGATE_CACHE_MIB="0") as off:
        counts = [_outputs(_post(off, x))["asked"] for _ in range(2)]
        assert counts[0] < counts[1]
        assert _cache(_post(off, x).headers) == ""
        assert off.metrics("tidegate_cache_requests_total{") == {}


def test_a_hit_counts_against_the_limits(pair, gateway, x):
    """The last one: a limit that is lifted stays in force for a while."""
    limit = '[[limits]]\nscope = "tenant"\nkind = "requests"\namount = 3\nwindow_s = 3600\n'
    (pair.work / "gateway.toml").write_text(POLICY + limit)
    wait_until(
        lambda: "ratelimit-policy" in _post(gateway, 0.5).headers, 30, "the limit is in force"
    )
    responses = [_post(gateway, x, tenant="two") for _ in range(4)]
    assert [response.status_code for response in responses] == [200, 200, 200, 429]
    assert [_cache(response.headers) for response in responses] == ["miss", "hit", "hit", ""]
