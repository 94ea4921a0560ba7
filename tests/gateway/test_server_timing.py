"""Server-Timing is on every response of every API, errors and streams too."""

import asyncio
import re
import time

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2_grpc

from gateway.upstream.replicas import ReplicaPool
from tests.gateway.every_api import V2_BODY, every_api, llm_message
from tests.gateway.fake_triton import late

CHAT = {"model": "llm", "messages": [{"role": "user", "content": "x"}]}
GENERATE = {"text_input": "x", "sampling_parameters": '{"max_tokens": 5}'}
SENT = {"gateway", "queue", "upstream", "total"}
NOT_SENT = SENT - {"queue"}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with every_api(tmp_path_factory.mktemp("timing"), "short") as served_and_port:
        yield served_and_port


def _read(header: str) -> dict[str, float]:
    return {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", header)}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "names"),
    [
        ("POST", "/v2/models/p/infer", V2_BODY, 200, SENT),
        ("POST", "/v2/models/llm/generate_stream", GENERATE, 200, SENT),
        ("POST", "/v1/embed", {"text": "words"}, 200, SENT),
        ("POST", "/v1/embeddings", {"model": "embed", "input": "words"}, 200, SENT),
        ("POST", "/v1/chat/completions", CHAT, 200, SENT),
        ("POST", "/v1/chat/completions", {**CHAT, "stream": True}, 200, SENT),
        ("GET", "/v2/models/p/config", None, 200, NOT_SENT),
        ("GET", "/v1/models", None, 200, NOT_SENT),
        ("GET", "/healthz", None, 200, NOT_SENT),
        ("GET", "/nothing", None, 404, NOT_SENT),
        ("DELETE", "/v1/models", None, 405, NOT_SENT),
        ("POST", "/v1/embed", {"text": " "}, 422, SENT),
        ("POST", "/v2/models/p/infer", {}, 400, NOT_SENT),
    ],
)
def test_every_response_says_its_times(running, method, path, body, status, names):
    served, _ = running
    headers = {"Authorization": f"Bearer {served.key}"}
    response = httpx.request(method, served.url + path, json=body, headers=headers, timeout=60)
    assert response.status_code == status
    times = _read(response.headers["server-timing"])
    assert set(times) == names
    assert times["total"] == pytest.approx(times["gateway"] + times["upstream"], abs=0.02)
    if "queue" in names:
        assert times["upstream"] > 0
        assert times["queue"] + times["upstream"] <= times["total"] + 0.02  # they are rounded


@pytest.mark.parametrize("path", ["/v1/embed", "/v1/chat/completions"])
def test_what_passes_before_it_is_sent_is_not_upstream(running, path, monkeypatch):
    """A choice of a replica that takes long, as on a machine without idle cores."""
    served, _ = running
    body = {"/v1/embed": {"text": "words"}, "/v1/chat/completions": CHAT}[path]
    choose = ReplicaPool.permit

    def slowly(*arguments, **options):
        time.sleep(0.3)
        return choose(*arguments, **options)

    monkeypatch.setattr(ReplicaPool, "permit", slowly)
    headers = {"Authorization": f"Bearer {served.key}"}
    response = httpx.post(served.url + path, json=body, headers=headers, timeout=60)
    assert response.status_code == 200
    times = _read(response.headers["server-timing"])
    assert times["queue"] >= 300
    assert times["queue"] + times["upstream"] <= times["total"] + 0.02
    assert times["gateway"] >= 300


def test_a_stranger_is_told_too(running):
    served, _ = running
    response = httpx.post(f"{served.url}/v1/embed", json={"text": "x"})
    assert response.status_code == 401 and set(_read(response.headers["server-timing"])) == NOT_SENT


def test_the_models_time_is_upstream(running):
    served, _ = running
    served.llm.answer = late(0.2)
    try:
        headers = {"Authorization": f"Bearer {served.key}"}
        response = httpx.post(f"{served.url}/v2/models/p/infer", json=V2_BODY, headers=headers)
    finally:
        served.llm.answer = late(0)
    assert _read(response.headers["server-timing"])["upstream"] >= 200


def _trailers(port: int, key: str, name: str, stream: bool) -> dict[str, str]:
    async def call() -> dict[str, str]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            metadata = (("authorization", f"Bearer {key}"),)
            if stream:
                started = stub.ModelStreamInfer(iter([llm_message("x", name)]), metadata=metadata)
                async for _ in started:
                    pass
            else:
                message = llm_message("x", name)
                del message.inputs[:], message.raw_input_contents[:]
                message.inputs.add(name="x", datatype="FP32", shape=[1])
                message.raw_input_contents.append(bytes(4))
                started = stub.ModelInfer(message, metadata=metadata)
                await started.code()
            return dict(await started.trailing_metadata())

    return asyncio.run(call())


@pytest.mark.parametrize(
    ("name", "stream", "names"),
    [("p", False, SENT), ("absent", False, NOT_SENT), ("llm", True, {"total"})],
)
def test_grpc_says_its_times_in_its_trailers(running, name, stream, names):
    served, port = running
    assert set(_read(_trailers(port, served.key, name, stream)["server-timing"])) == names
