"""One tenant floods a language model with long texts: another one's begin nearly as soon as on the
idle model, over every API, and none of them is refused."""

import collections
import contextlib
import json
import re
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from gateway.models.tensors import pack
from tests.back_to_back import back_to_back
from tests.e2e.pair import Pair, Running
from tests.echoing import MODELS
from tests.running import wait_until

STEP_S, PLACES = 0.05, 8
# As an engine with continuous batching: every step generates a token of each text that it runs, and
# what it has no place for waits, first come, first served.
ENGINE = f"""
import collections
import json
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

STEP_S, PLACES = {STEP_S}, {PLACES}
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        self.waiting, self.running = collections.deque(), []
        threading.Thread(target=self.run, daemon=True).start()

    def execute(self, requests):
        self.waiting.extend(Text(request) for request in requests)

    def run(self):
        while True:
            while self.waiting and len(self.running) < PLACES:
                self.running.append(self.waiting.popleft())
            time.sleep(STEP_S)
            self.running = [text for text in self.running if text.goes_on()]


class Text:
    def __init__(self, request):
        self.sender = request.get_response_sender()
        sampling = pb_utils.get_input_tensor_by_name(request, "sampling_parameters")
        self.most = json.loads(sampling.as_numpy().item())["max_tokens"]
        self.made = 0

    def goes_on(self):
        if self.sender.is_cancelled():
            self.sender.send(flags=FINAL)
            return False
        self.made += 1
        is_last = self.made == self.most
        outputs = {{
            "text_output": np.array([b" word"], dtype=object),
            "finish_reason": np.array([b"length" if is_last else b"None"], dtype=object),
            "num_input_tokens": np.array([1], dtype=np.uint32),
            "num_output_tokens": np.array([1], dtype=np.uint32),
        }}
        tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items()]
        self.sender.send(pb_utils.InferenceResponse(tensors), FINAL if is_last else 0)
        return not is_last
"""
CONFIG = (MODELS / "echo_llm" / "config.pbtxt").read_text().replace('backend: "python"\n', "")
DECLARED = f'parameters {{ key: "tidegate.max_num_seqs" value {{ string_value: "{PLACES}" }} }}\n'
FLOOD, LONG = 50, 20  # connections that call back to back, and the tokens that each asks for
LONG_S = LONG * STEP_S
MESSAGES = [{"role": "user", "content": "Say words"}]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    home = tmp_path_factory.mktemp("streams")
    models = {"declared": (ENGINE, CONFIG + DECLARED), "silent": (ENGINE, CONFIG)}
    with Pair(home, models, servers=(0,)) as pair:
        yield pair


@pytest.fixture(scope="module")
def gateway(pair):
    with Running(pair, pair.addresses[:1], TIDEGATE_DEADLINE_S="30") as running:
        wait_until(running.is_ready, 60, "the gateway is ready")
        yield running


def _generate(model, tokens, **parameters):
    """The path and body of a V2 stream."""
    sampling = json.dumps({"max_tokens": tokens})
    body = {"text_input": "Say", "stream": True, "sampling_parameters": sampling}
    return f"/v2/models/{model}/generate_stream", {**body, "parameters": parameters}


def _chat(model, tokens, *, stream=True):
    body = {"model": model, "messages": MESSAGES, "max_tokens": tokens, "stream": stream}
    return "/v1/chat/completions", body


class Caller:
    """A tenant's calls; each method returns the seconds until the first text came."""

    def __init__(self, gateway, tenant):
        self.gateway, self.headers = gateway, gateway.headers(tenant)
        self.client = httpx.Client(
            base_url=gateway.client.base_url, timeout=60, headers=self.headers
        )
        self.channel = grpc.insecure_channel(f"127.0.0.1:{gateway.grpc_port}")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.client.close()
        self.channel.close()

    def stream(self, path, body):
        started = time.perf_counter()
        first_s = None
        with self.client.stream("POST", path, json=body) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                assert '"error"' not in line, line
                if "word" in line and first_s is None:
                    first_s = time.perf_counter() - started
        assert first_s is not None
        return first_s

    def generate_stream(self, model):
        return self.stream(*_generate(model, 2))

    def chat_stream(self, model):
        return self.stream(*_chat(model, 2))

    def chat(self, model):
        path, body = _chat(model, 1, stream=False)
        started = time.perf_counter()
        response = self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        return time.perf_counter() - started

    def grpc_stream(self, model):
        message = service_pb2.ModelInferRequest(model_name=model)
        for name, dtype, value in (
            ("text_input", "BYTES", b"Say"),
            ("sampling_parameters", "BYTES", b'{"max_tokens": 2}'),
            ("stream", "BOOL", True),
        ):
            message.inputs.add(name=name, datatype=dtype, shape=[1])
            message.raw_input_contents.append(pack(name, dtype, [value]))
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        metadata = [("authorization", self.headers["Authorization"])]
        started = time.perf_counter()
        responses = stub.ModelStreamInfer(iter([message]), timeout=30, metadata=metadata)
        first = next(responses)
        took_s = time.perf_counter() - started
        assert not [one.error_message for one in (first, *responses) if one.error_message]
        return took_s


APIS = ("generate_stream", "chat_stream", "chat", "grpc_stream")


def _measured(caller, model, count):
    """For each API, the seconds until its first texts."""
    seconds = collections.defaultdict(list)
    for _ in range(count):
        for api in APIS:
            seconds[api].append(getattr(caller, api)(model))
    return seconds


@contextlib.contextmanager
def _flood(gateway, model):
    """The first tenant's calls, back to back on every connection."""

    def call(client):
        path, body = _chat(model, LONG)
        with client.stream("POST", path, json=body) as response:
            for _ in response.iter_raw():
                pass
        return response.status_code

    def connect():
        url, headers = gateway.client.base_url, gateway.headers("one")
        return httpx.Client(base_url=url, headers=headers, timeout=60)

    with back_to_back(call, connect, FLOOD) as calls:
        wait_until(lambda: calls.counts[200] > 2 * PLACES, 60, "the flood goes on")
        yield calls


def _gauge(gateway, name, model):
    url = f"http://127.0.0.1:{gateway.admin_port}/metrics"
    page = httpx.get(url, headers=gateway.headers()).text
    values = re.findall(rf'^{name}\{{.*model="{model}".*\}} ([\d.]+)$', page, re.MULTILINE)
    return float(values[0]) if values else 0.0


def test_a_flood_of_long_texts_is_hardly_felt_by_another_tenant(gateway):
    with Caller(gateway, "two") as quiet:
        idle = _measured(quiet, "declared", 6)
        with _flood(gateway, "declared") as flood:
            waiting = _waiting(gateway)
            busy = _measured(quiet, "declared", 15)
    for api in APIS:
        before, during = np.array(idle[api]), np.array(busy[api])
        sys.stdout.write(
            f"{api}, first text: idle p50 {1000 * np.median(before):.0f} ms, "
            f"max {1000 * before.max():.0f} ms; under the flood p50 {1000 * np.median(during):.0f} "
            f"ms, max {1000 * during.max():.0f} ms\n"
        )
        # In the engine's own queue it would wait for as many texts as the flood has there.
        assert np.median(during) <= 2 * np.median(before) + STEP_S
        assert during.max() < 3 * LONG_S
    sys.stdout.write(f"{dict(flood.counts)} of the flood, {waiting:.0f} waited in the gateway\n")
    assert set(flood.counts) == {200}
    assert waiting >= FLOOD / 2


def test_an_engine_that_says_nothing_of_itself_is_not_flooded_for_long(gateway):
    """It takes 8 where 64 are expected: what it has no room for holds its own tenant back."""
    with Caller(gateway, "two") as quiet, _flood(gateway, "silent"):
        busy = _measured(quiet, "silent", 5)
    seconds = np.array([busy[api] for api in APIS]).ravel()
    sys.stdout.write(f"first text p50 {np.median(seconds):.2f} s, max {seconds.max():.2f} s\n")
    # Behind a few of the flood's that wait in the engine, and not behind all 42.
    assert np.median(seconds) < LONG_S


@contextlib.contextmanager
def _full(gateway):
    """The first tenant has all the texts under way that it may have, for longer than a test."""
    with contextlib.ExitStack() as clients:
        for _ in range(PLACES * 3 // 4):
            caller = clients.enter_context(Caller(gateway, "one"))
            path, body = _generate("declared", 1000)
            response = caller.client.stream("POST", path, json=body)
            assert clients.enter_context(response).status_code == 200
        yield


def _waiting(gateway):
    return _gauge(gateway, "tidegate_model_waiting_requests", "declared")


def _request(gateway, path, body):
    """The bytes of the first tenant's request."""
    text = json.dumps(body)
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n"
        f"Authorization: {gateway.headers()['Authorization']}\r\n\r\n{text}"
    ).encode()


def test_a_client_that_leaves_while_it_waits_takes_no_place(gateway):
    def left():
        return _gauge(gateway, "tidegate_requests_total", r'declared",status="499')

    with _full(gateway):
        before = left()
        path, body = _generate("declared", 5)

        with socket.create_connection(("127.0.0.1", gateway.port)) as leaving:
            leaving.sendall(_request(gateway, path, body))
            wait_until(lambda: _waiting(gateway) == 1, 30, "it waits")
        wait_until(lambda: _waiting(gateway) == 0, 30, "it waits no more")
        wait_until(lambda: left() == before + 1, 30, "it is counted as one that left")
        # The deadline counts while a request waits.
        late_path, late_body = _generate("declared", 5, timeout=500_000)
        with Caller(gateway, "one") as late:
            response = late.client.post(late_path, json=late_body)
        assert response.status_code == 504, response.text
        with Caller(gateway, "two") as quiet:
            assert quiet.generate_stream("declared") < 10 * LONG_S  # the others take 50


def test_what_still_waits_when_the_gateway_stops_is_refused_and_not_cut_off(pair):
    limit_s = 4
    with Running(
        pair,
        pair.addresses[:1],
        TIDEGATE_DEADLINE_S="30",
        TIDEGATE_DRAIN_LIMIT_S=str(limit_s),
    ) as gateway:
        wait_until(gateway.is_ready, 60, "the gateway is ready")
        with _full(gateway), ThreadPoolExecutor(2) as pool, Caller(gateway, "one") as caller:
            path, body = _chat("declared", 5)
            over_http = pool.submit(caller.client.post, path, json=body)
            over_grpc = pool.submit(caller.grpc_stream, "declared")
            wait_until(lambda: _waiting(gateway) == 2, 30, "both wait")
            gateway.process.terminate()
            response = over_http.result(limit_s + 20)
            assert response.status_code == 503, response.text
            assert response.json()["error"]["code"] == "no_capacity"
            assert "the gateway is stopping" in response.json()["error"]["message"]
            assert response.headers["retry-after"] == "1"
            with pytest.raises(AssertionError, match="the gateway is stopping"):
                over_grpc.result(limit_s + 20)
            assert gateway.process.wait(30) == 0
