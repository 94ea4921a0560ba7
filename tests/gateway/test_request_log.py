"""The request log: a line for each request of every API, whatever the client sends and the disk
does, and never a word of what was asked or answered."""

import asyncio
import contextlib
import json
import os
import re
import threading

import grpc
import httpx
import pytest
from tritonclient.grpc import InferenceServerClient

from gateway import request_log
from gateway.http.request_context import ClientGone, RequestContext
from gateway.metrics import Metrics
from gateway.policy.access import Access
from gateway.policy.gateway_toml import NO_FILE
from gateway.request_log import RequestLog
from tests.gateway.every_api import V2_BODY, every_api, infer_input, llm_message
from tests.gateway.fake_llm import wait_for, words

SECRET = "velvet"  # in everything that is sent and answered
FIELDS = [
    *("time", "request_id", "tenant", "api", "route", "model", "pipeline", "version", "replica"),
    *("status", "total_ms", "queue_ms", "upstream_ms", "first_token_ms"),
    *("input_tokens", "output_tokens", "trace_id", "cache"),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A gateway with every API, its log, and the port of its gRPC API."""
    folder = tmp_path_factory.mktemp("log")
    log = folder / "requests.jsonl"
    with every_api(folder, SECRET, request_log=str(log)) as (served, grpc_port):
        yield served, log, grpc_port


@pytest.fixture
def line(running):
    """The line of the request with this id, once it is written; it is the only one."""
    _, log, _ = running

    def find(identifier: str) -> dict:
        found = []

        def is_there() -> bool:
            text = log.read_text() if log.exists() else ""
            found[:] = [json.loads(entry) for entry in text.splitlines() if identifier in entry]
            return bool(found)

        wait_for(is_there)
        assert SECRET not in log.read_text()
        (fields,) = found
        assert list(fields) == FIELDS
        return fields

    return find


@pytest.fixture
def client(running):
    served, _, _ = running
    with httpx.Client(base_url=served.url, timeout=60) as client:
        client.headers["Authorization"] = f"Bearer {served.key}"
        yield client


def _headers(identifier: str) -> dict[str, str]:
    return {"x-request-id": identifier}


def test_v2(running, client, line):
    served, _, _ = running
    path = "/v2/models/p/infer"
    assert client.post(path, json=V2_BODY, headers=_headers("v2")).status_code == 200
    fields = line('"v2"')
    assert fields["api"] == "v2" and fields["route"] == "/v2/models/{model}/infer"
    assert (fields["tenant"], fields["model"], fields["pipeline"]) == ("default", "p", "p")
    assert fields["replica"] == f"127.0.0.1:{served.llm.port}"
    assert (fields["status"], fields["version"]) == (200, "1")
    assert fields["total_ms"] >= fields["queue_ms"] + fields["upstream_ms"] > 0
    assert fields["first_token_ms"] is fields["input_tokens"] is fields["output_tokens"] is None


def test_task_and_embeddings_say_their_tokens(client, line):
    body = {"text": f"three {SECRET} words"}
    assert client.post("/v1/embed", json=body, headers=_headers("task")).status_code == 200
    fields = line('"task"')
    assert (fields["api"], fields["route"]) == ("task", "/v1/{endpoint}")
    assert (fields["model"], fields["input_tokens"]) == ("embed", 3)
    body = {"model": "embed", "input": [f"{SECRET} and", "four of its words"]}
    assert client.post("/v1/embeddings", json=body, headers=_headers("oai")).status_code == 200
    fields = line('"oai"')
    assert (fields["api"], fields["input_tokens"], fields["output_tokens"]) == ("openai", 6, None)


@pytest.mark.parametrize("stream", [False, True])
def test_chat(client, line, stream):
    body = {"model": "llm", "messages": [{"role": "user", "content": SECRET}], "stream": stream}
    identifier = f"chat-{stream}"
    response = client.post("/v1/chat/completions", json=body, headers=_headers(identifier))
    assert response.status_code == 200 and SECRET in response.text
    fields = line(f'"{identifier}"')
    assert (fields["route"], fields["model"]) == ("/v1/chat/completions", "llm")
    assert fields["output_tokens"] == 3 and fields["input_tokens"] > 0
    assert 0 < fields["queue_ms"] < fields["first_token_ms"] < fields["total_ms"]
    assert fields["upstream_ms"] > fields["first_token_ms"] - fields["queue_ms"]


def test_a_client_that_leaves_a_stream_has_its_line(running, client, line):
    served, _, _ = running
    served.llm.delay_s = 0.05
    served.llm.write = lambda prompt, sampling: words(f"{SECRET} " * 1000)
    body = {"model": "llm", "messages": [{"role": "user", "content": "x"}], "stream": True}
    try:
        with client.stream(
            "POST", "/v1/chat/completions", json=body, headers=_headers("gone")
        ) as response:
            next(response.iter_raw())
        fields = line('"gone"')
    finally:
        served.llm.delay_s = 0.0
        served.llm.write = lambda prompt, sampling: words(f"a {SECRET} answer")
    assert fields["status"] == 499 and fields["output_tokens"] >= 1
    assert fields["first_token_ms"] is not None


def test_refusals(client, line):
    client.post("/v2/models/absent/infer", json=V2_BODY, headers=_headers("absent"))
    assert (line('"absent"')["status"], line('"absent"')["queue_ms"]) == (404, None)
    client.post(
        "/v2/models/p/infer",
        json=V2_BODY,
        headers={**_headers("stranger"), "Authorization": "Bearer no"},
    )
    fields = line('"stranger"')
    assert (fields["status"], fields["tenant"], fields["api"]) == (401, "", "v2")
    client.get("/nothing/here", headers=_headers("nowhere"))
    fields = line('"nowhere"')
    assert (fields["status"], fields["api"], fields["route"]) == (404, "control", "")


def test_grpc_unary(running, line):
    served, _, port = running
    client = InferenceServerClient(f"127.0.0.1:{port}")
    headers = {"authorization": f"Bearer {served.key}", "x-request-id": "unary"}
    client.infer("p", infer_input(), headers=headers)
    fields = line('"unary"')
    assert (fields["api"], fields["route"], fields["status"]) == ("grpc", "ModelInfer", 200)
    assert fields["replica"] == f"127.0.0.1:{served.llm.port}"
    assert fields["total_ms"] >= fields["queue_ms"] + fields["upstream_ms"] > 0


def test_each_message_of_a_grpc_stream_has_its_line(running):
    served, log, port = running

    async def talk() -> int:
        from tritonclient.grpc import service_pb2_grpc

        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            metadata = (("authorization", f"Bearer {served.key}"), ("x-request-id", "talk"))
            messages = [llm_message(SECRET), llm_message(SECRET, "absent"), llm_message(SECRET)]
            responses = stub.ModelStreamInfer(iter(messages), metadata=metadata)
            return len([response async for response in responses])

    assert asyncio.run(talk()) == 3 + 1 + 3
    wait_for(lambda: log.read_text().count('"talk"') >= 3)
    lines = [json.loads(text) for text in log.read_text().splitlines() if '"talk"' in text]
    assert sorted(fields["status"] for fields in lines) == [200, 200, 404]
    for fields in lines:
        assert (fields["api"], fields["route"]) == ("grpc", "ModelStreamInfer")
        assert (fields["first_token_ms"] is None) is (fields["status"] == 404)
    assert SECRET not in log.read_text()


@pytest.mark.parametrize("before_a_response", [True, False])
def test_a_client_that_leaves_a_grpc_stream_has_its_line(running, line, before_a_response):
    served, _, port = running
    served.llm.delay_s = 0.5 if before_a_response else 0.05
    served.llm.write = lambda prompt, sampling: words("on " * 1000)
    identifier = f"left-{before_a_response}"

    async def leave() -> None:
        from tritonclient.grpc import service_pb2_grpc

        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            metadata = (("authorization", f"Bearer {served.key}"), ("x-request-id", identifier))
            before = len(served.llm.requests)
            message = llm_message(SECRET)
            message.raw_input_contents[1] = b"\x13\0\0\0" + b'{"max_tokens": 500}'
            call = stub.ModelStreamInfer(iter([message]), metadata=metadata)
            if before_a_response:
                reading = asyncio.ensure_future(call.read())
                await asyncio.to_thread(wait_for, lambda: len(served.llm.requests) > before)
                reading.cancel()
            else:
                await call.read()
            call.cancel()

    try:
        asyncio.run(leave())
        assert line(f'"{identifier}"')["status"] == 499
    finally:
        served.llm.delay_s = 0.0
        served.llm.write = lambda prompt, sampling: words(f"a {SECRET} answer")


def test_a_client_cannot_forge_a_line(running, client):
    _, log, _ = running
    forged = 'x"}\n{"request_id": "forged", "status": 200}\r\x1b[2K\x85\u2028\x9b'
    for model in (forged, forged + "\ud800", "y" * 100_000):
        body = json.dumps({"model": model, "input": "x"})
        assert client.post("/v1/embeddings", content=body).status_code in (400, 404)
    client.post(
        "/v2/models/p/infer", json=V2_BODY, headers={"x-request-id": 'a"} {"request_id": "forged"'}
    )
    last = {"x-request-id": "after-forging"}
    client.get("/v1/models", headers=last)
    wait_for(lambda: "after-forging" in log.read_text())
    text = log.read_text()
    lines = [json.loads(entry) for entry in text.split("\n")[:-1]]
    assert not [fields for fields in lines if fields["request_id"] == "forged"]
    assert any('"forged"' in fields["model"] for fields in lines)
    assert not re.search("[\x00-\x09\x0b-\x1f\x80-\x9f\u2028\u2029]", text)
    assert max(map(len, text.splitlines())) < 4096


# --- a disk that is full, a pipe that nobody reads ------------------------------------------------


def _context() -> RequestContext:
    async def receive():
        raise ClientGone

    return RequestContext({"path": "/", "headers": []}, receive, Access(NO_FILE), 1, 1.0)


@pytest.fixture
def opened():
    logs: list[RequestLog] = []
    dropped: list[int] = []

    def open_log(target) -> tuple[RequestLog, list[int]]:
        logs.append(RequestLog(str(target), dropped.append))
        logs[-1].start()
        return logs[-1], dropped

    yield open_log
    for log in logs:
        log.close()


def test_a_full_disk_drops_lines_and_counts_them(opened):
    log, dropped = opened("/dev/full")
    for _ in range(7):
        log.note(_context(), 200)
    wait_for(lambda: sum(dropped) == 7)
    log.note(_context(), 200)
    wait_for(lambda: sum(dropped) == 8)


def test_after_a_full_disk_no_line_is_half_written(opened, tmp_path, monkeypatch):
    """The disk takes a part of what is written and is then full, as disks are."""
    real, room = os.write, [100]

    def write(descriptor, data):
        if threading.current_thread().name != "request_log":
            return real(descriptor, data)
        if not room[0]:
            raise OSError(28, "No space left on device")
        written = real(descriptor, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(request_log.os, "write", write)
    path = tmp_path / "requests.jsonl"
    log, dropped = opened(path)
    log.note(_context(), 200)
    wait_for(lambda: sum(dropped) == 1)
    assert path.read_bytes() == b""
    room[0] = 10**6
    log.note(_context(), 418)
    wait_for(lambda: path.read_bytes() != b"")
    assert [json.loads(text)["status"] for text in path.read_text().splitlines()] == [418]


def test_a_pipe_that_nobody_reads_blocks_no_request(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(request_log, "MAX_WAITING", 50)
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log, dropped = opened(fifo)
    noted = 0
    while not dropped:  # the pipe takes 64 KiB, then its writer waits
        log.note(_context(), 200)
        noted += 1
        assert noted < 10**6
    os.set_blocking(reader, False)
    read = b""

    def read_all() -> bool:
        nonlocal read
        with contextlib.suppress(BlockingIOError):
            read += os.read(reader, 1 << 16)
        return read.count(b"\n") + sum(dropped) == noted

    wait_for(read_all)
    assert all(json.loads(text)["status"] == 200 for text in read.splitlines())
    os.close(reader)


def test_the_file_may_be_renamed_while_it_is_written(opened, tmp_path):
    path = tmp_path / "requests.jsonl"
    log, dropped = opened(path)
    log.note(_context(), 200)
    wait_for(path.exists)
    path.rename(tmp_path / "old")
    log.note(_context(), 201)
    wait_for(lambda: path.exists() and path.read_bytes().endswith(b"\n"))
    assert json.loads(path.read_text())["status"] == 201
    assert json.loads((tmp_path / "old").read_text())["status"] == 200
    assert not dropped


def test_stdout(monkeypatch, opened, tmp_path):
    written: list[bytes] = []
    real = os.write

    def write(descriptor, data):
        if descriptor != 1:
            return real(descriptor, data)
        written.append(bytes(data))
        return len(data)

    monkeypatch.setattr(request_log.os, "write", write)
    log, _ = opened("stdout")
    log.note(_context(), 200)
    wait_for(lambda: bool(written))
    assert json.loads(written[0])["status"] == 200


def test_what_is_dropped_is_a_metric():
    metrics = Metrics()
    metrics.log_lines_dropped(3)
    assert metrics.registry.get_sample_value("tidegate_request_log_dropped_total") == 3
