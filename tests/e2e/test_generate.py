"""V2 generate, config and stats, each compared with Triton's own HTTP API."""

import asyncio
import json

import httpx
import numpy as np
import pytest
from tritonclient import http as triton_http

from gateway.api.openai.completions import CompletionsApi
from gateway.api.v2.generate import GenerateApi
from gateway.core import Gateway
from gateway.errors import DeadlineExceeded, InvalidRequest, NoCapacity
from gateway.settings import Settings
from tests.gateway.request_contexts import context_of
from tests.running import wait_until

ECHO = "/v2/models/echo_llm"


def _direct(echo, path: str, body=None) -> httpx.Response:
    """The same request to Triton itself."""
    url = f"http://{echo.http_address}{path}"
    return httpx.post(url, json=body, timeout=30) if body else httpx.get(url, timeout=30)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"{ECHO}/generate", {"text_input": "a b c", "id": "mine"}),
        (f"{ECHO}/versions/1/generate", {"text_input": "a", "exclude_input_in_output": True}),
        (f"{ECHO}/generate", {"text_input": "a b", "parameters": {"stream": False, "seed": 1}}),
        (f"{ECHO}/generate", {"text_input": ["a b"], "return_num_output_tokens": True}),
        ("/v2/models/identity_fp32/generate", {"INPUT0": [1, 2.5, -3]}),
        ("/v2/models/identity_fp32/generate", {"INPUT0": 7}),
    ],
)
def test_generate_answers_as_triton_does(echo, path, body):
    mine, direct = echo.post(path, json=body), _direct(echo, path, body)
    assert mine.status_code == direct.status_code == 200
    assert mine.json() == direct.json()


def _events(response: httpx.Response) -> list:
    assert response.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line[6:]) for line in response.text.splitlines() if line]


@pytest.mark.parametrize("model", ["echo_llm", "identity_fp32"])
def test_generate_stream_answers_as_triton_does(echo, model):
    bodies = {"echo_llm": {"text_input": "a b c", "stream": True}, "identity_fp32": {"INPUT0": [1]}}
    path = f"/v2/models/{model}/generate_stream"
    mine, direct = echo.post(path, json=bodies[model]), _direct(echo, path, bodies[model])
    assert _events(mine) == _events(direct)
    assert len(_events(mine)) == (3 if model == "echo_llm" else 1)


def test_a_failing_stream_hides_the_models_message(echo):
    body = {"text_input": "[fail 3] a b c d", "stream": True}
    *events, last = _events(echo.post(f"{ECHO}/generate_stream", json=body))
    assert [event["text_output"] for event in events] == ["a", " b"]
    assert "the model failed" in last["error"]
    assert "secret" not in last["error"]


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({"text_input": "a", "temperature": 1}, "no input 'temperature'"),
        ({"text_input": 7}, "must be strings"),
        ({"text_input": ["a", "b"]}, "2 values do not fill"),
        ({"text_input": None}, "must be strings"),
        ({"text_input": [["a"]]}, "must be strings"),
        ({"stream": True}, "'text_input' is missing"),
        ({"text_input": "a", "stream": 1}, "BOOL data"),
        ({"text_input": "a", "parameters": {"text_input": "b"}}, "in the body and in 'parameters'"),
        ({"text_input": "a", "parameters": {"shared_memory_region": "x"}}, "cannot be used"),
        ({"text_input": "a", "parameters": {"sequence_id": 4}}, "works only with infer"),
        ({"text_input": "a", "parameters": {"x": [1]}}, "must be a string, a number"),
        ({"text_input": "a", "parameters": 3}, "must be an object"),
        ({"text_input": "a", "id": 3}, "'id' must be a string"),
        ([1], "must be a JSON object"),
        ({"text_input": "a b", "stream": True}, "use generate_stream"),
    ],
)
def test_generate_refuses(echo, body, fault):
    response = echo.post(f"{ECHO}/generate", json=body)
    assert response.status_code == 400
    assert fault in response.json()["error"]


def test_parameters_reach_the_model_except_priority(echo):
    """The model reads them as its sampling parameters; Triton would refuse the type of priority."""
    parameters = {"max_tokens": 2, "priority": "1", "triton_x": True}
    body = {"text_input": "a b c", "exclude_input_in_output": True, "parameters": parameters}
    assert echo.post(f"{ECHO}/generate", json=body).json()["text_output"] == "a b"


def test_the_requests_timeout_is_its_deadline(echo):
    body = {"text_input": "[delay 9] a", "parameters": {"timeout": 300_000}}
    for path in ("generate", "generate_stream"):
        assert echo.post(f"{ECHO}/{path}", json=body).status_code == 504


@pytest.mark.parametrize("model", ["echo_llm", "identity_fp32", "identity_fp32/versions/{v}"])
@pytest.mark.parametrize("route", ["config", "stats"])
def test_config_and_stats_are_tritons_own(echo, model, route):
    versions = echo.get("/v2/models/identity_fp32").json()["versions"]
    path = f"/v2/models/{model.format(v=versions[0])}/{route}"
    mine, direct = echo.get(path), _direct(echo, path)
    assert mine.status_code == 200
    assert mine.json() == direct.json()


def test_unknown_models(echo):
    for path in ("config", "stats"):
        assert echo.get(f"/v2/models/nobody/{path}").status_code == 404
        assert echo.get(f"/v2/models/echo_llm/versions/9/{path}").status_code == 404
    assert echo.post("/v2/models/nobody/generate", json={}).status_code == 404


def test_the_requests_of_perf_analyzer_over_http(echo):
    """Its requests in its order, through the client library it is built on."""
    headers, model = echo.headers, "identity_fp32"
    with triton_http.InferenceServerClient(echo.url.removeprefix("http://")) as client:
        assert client.is_server_live(headers=headers)
        assert "statistics" in client.get_server_metadata(headers=headers)["extensions"]
        metadata = client.get_model_metadata(model, headers=headers)
        config = client.get_model_config(model, headers=headers)
        assert config["max_batch_size"] >= 0
        assert config["input"][0]["data_type"] == "TYPE_FP32"
        version = metadata["versions"][-1]

        def count() -> int:
            stats = client.get_inference_statistics(model, version, headers=headers)
            return stats["model_stats"][0]["inference_stats"]["success"]["count"]

        before = count()
        tensor = triton_http.InferInput(metadata["inputs"][0]["name"], [1, 16], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 16), dtype=np.float32))
        for _ in range(10):
            client.infer(model, [tensor], headers=headers)
        wait_until(lambda: count() == before + 10, 30, "Triton has counted them")


@pytest.fixture
async def impatient(echo):
    """A gateway in this process that waits half a second and holds one request."""
    settings = Settings(
        replicas=(echo.grpc_address,),
        triton_key_file=echo.home / ".tidegate" / "triton.key",
        deadline_s=0.5,
        max_inflight=1,
    )
    gateway = Gateway(settings)
    gateway.catalogue = await gateway.reader.read(gateway.pool.replicas)
    yield gateway
    await gateway.pool.close()


def _context(body: dict, **path_params):
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive():
        return messages.pop() if messages else await asyncio.Future()

    scope = {"path": "/v1/chat/completions", "headers": [], "path_params": path_params}
    return context_of(scope, receive, deadline_s=0.5)


async def _answer(gateway: Gateway, text: str) -> bytes:
    """The body of a streamed chat answer."""
    body = {"model": "echo_llm", "stream": True, "messages": [{"role": "user", "content": text}]}
    reply = await CompletionsApi(gateway).chat(_context(body))
    sent = []

    async def send(message) -> None:
        sent.append(message.get("body", b""))

    await reply.send(send)
    return b"".join(sent)


async def test_a_model_that_falls_silent_times_out(impatient):
    """The deadline bounds each wait, not the whole answer."""
    steady = await _answer(impatient, "[delay 0.1] one two three four five six seven eight nine")
    assert b"[DONE]" in steady
    with pytest.raises(DeadlineExceeded):
        await _answer(impatient, "[delay 0.8] one two")
    silent = await _answer(impatient, "[hang 3] one two three four")
    assert b'"deadline_exceeded"' in silent
    assert b"[DONE]" not in silent
    assert b"[DONE]" in await _answer(impatient, "its permit was given back")


async def test_a_stream_holds_its_permit_to_the_end(impatient):
    first = asyncio.create_task(_answer(impatient, "[delay 0.1] one two three"))
    await asyncio.sleep(0.15)
    with pytest.raises(NoCapacity):
        await _answer(impatient, "too many")
    assert b"[DONE]" in await first
    assert b"[DONE]" in await _answer(impatient, "now there is room")


async def test_generate_refuses_several_answers_and_cancels_them(impatient):
    api = GenerateApi(impatient)
    body = {"text_input": "[delay 0.01] " + "a " * 16, "stream": True}
    with pytest.raises(InvalidRequest, match="several responses"):
        await api.generate(_context(body, model="echo_llm"))
    assert b"[DONE]" in await _answer(impatient, "its permit was given back")


async def test_a_model_that_dies_in_the_middle(echo, impatient):
    """Triton does not report it: the silence is what is noticed. The watcher restarts the model."""
    cut = await _answer(impatient, "[die 3] one two three four five")
    assert b'"content":" two"' in cut
    assert b'"deadline_exceeded"' in cut
    assert b"[DONE]" not in cut
    # The dead model would take the whole deadline; for a live one half a second is enough.
    body = {"text_input": "a", "parameters": {"timeout": 500_000}}
    wait_until(
        lambda: echo.post(f"{ECHO}/generate", json=body).status_code == 200, 30, "its return"
    )
