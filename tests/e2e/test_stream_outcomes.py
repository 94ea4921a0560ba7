"""Metrics and audit log record how a stream really ended, whatever status it started with."""

import json
import re

import httpx
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from tests.running import wait_until

CHAT, GENERATE = "/v1/chat/completions", "/v2/models/echo_llm/generate_stream"


def _body(path: str, text: str) -> dict:
    if path == GENERATE:
        most = json.dumps({"max_tokens": 1_000_000})  # by default it says 16, like vLLM's backend
        return {"text_input": text, "stream": True, "sampling_parameters": most}
    return {
        "model": "echo_llm",
        "stream": True,
        "messages": [{"role": "user", "content": text}],
    }


def _counted(echo) -> dict[int, int]:
    """Inferences by status, from /metrics."""
    text = httpx.get(f"http://127.0.0.1:{echo.admin_port}/metrics", headers=echo.headers).text
    samples = re.findall(
        r'requests_total\{action="infer",model="echo_llm",status="(\d+)"} (\d+)', text
    )
    return {int(status): int(count) for status, count in samples}


def _audited(echo, request_id: str) -> list[tuple[str, str, int]]:
    log = echo.home / ".tidegate" / "audit.log"  # a thread makes it with the first line
    lines = log.read_text().splitlines() if log.exists() else []
    records = [json.loads(line) for line in lines]
    return [
        (line["model"], line["decision"], line["status"])
        for line in records
        if line["request_id"] == request_id
    ]


@pytest.mark.parametrize("path", [CHAT, GENERATE])
@pytest.mark.parametrize(("text", "status"), [("[fail 2] a b c", 502), ("a b c", 200)])
def test_a_stream_that_fails_in_the_middle(echo, path, text, status):
    before, mine = _counted(echo), f"fails-{path[1:3]}-{status}"
    headers = {**echo.headers, "x-request-id": mine}
    response = httpx.post(echo.url + path, json=_body(path, text), headers=headers)
    assert response.status_code == 200
    expected = before.get(status, 0) + 1
    wait_until(lambda: _counted(echo).get(status, 0) == expected, 30, "it is counted")
    wait_until(lambda: _audited(echo, mine) == [("echo_llm", "allow", status)], 30, "its line")


@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_a_client_that_leaves_a_stream(echo, path):
    before, mine = _counted(echo), f"leaves-{path[1:3]}"
    headers = {**echo.headers, "x-request-id": mine}
    body = _body(path, "[repeat 2000] [delay 0.01] a")
    with httpx.stream("POST", echo.url + path, json=body, headers=headers) as response:
        assert response.status_code == 200
        next(response.iter_lines())
    wait_until(lambda: _audited(echo, mine) == [("echo_llm", "allow", 499)], 30, "its line")
    # Others that left before, in another file, may be counted only now too.
    wait_until(lambda: _counted(echo).get(499, 0) > before.get(499, 0), 30, "it is counted")


@pytest.mark.parametrize("strict", ["true", "false"])
@pytest.mark.parametrize(
    ("text", "leaves", "status", "lines"),
    [
        ("[fail 2] a b c", False, 502, [200, 502]),
        ("[repeat 2000] [delay 0.01] a", True, 499, [200, 499]),
        ("a b", False, 200, [200]),
        ("", False, 400, [400]),  # refused before it is admitted
    ],
)
def test_a_grpc_stream(echo, strict, text, leaves, status, lines):
    """A message has one line when it is admitted, and another if it ends badly."""
    before, mine = _counted(echo), f"grpc-{status}-{strict}"
    headers = {
        "authorization": f"Bearer {echo.key}",
        "x-request-id": mine,
        "triton_grpc_error": strict,
    }
    results = []
    with InferenceServerClient(f"127.0.0.1:{echo.grpc_api_port}") as client:
        client.start_stream(lambda result, error: results.append(error or result), headers=headers)
        client.async_stream_infer("echo_llm", _inputs(text), enable_empty_final_response=True)
        count = 1 if leaves or not text else 2
        wait_until(lambda: len(results) >= count, 30, "its answers")
        client.stop_stream(cancel_requests=leaves)
    wait_until(lambda: _counted(echo).get(status, 0) > before.get(status, 0), 30, "the count")
    expected = [("echo_llm", "allow", line) for line in lines]
    wait_until(lambda: _audited(echo, mine) == expected, 30, "its lines")


def _inputs(text: str) -> list[InferInput]:
    """The inputs of a message; without ``text``, one with the wrong shape."""
    values = {"text_input": [text.encode()] if text else [b"a", b"b"], "stream": [True]}
    tensors = []
    for name, value in values.items():
        dtype, numpy_dtype = ("BOOL", bool) if name == "stream" else ("BYTES", object)
        tensors.append(InferInput(name, [len(value)], dtype))
        tensors[-1].set_data_from_numpy(np.array(value, dtype=numpy_dtype))
    return tensors
