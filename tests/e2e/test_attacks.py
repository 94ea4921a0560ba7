"""An attacker's evening: raw bytes, hostile documents and metadata, against a running stack."""

import json
import socket
import struct

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

INFER = "/v2/models/identity_fp32/infer"
TENSOR = {"name": "INPUT0", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
BODY = json.dumps({"inputs": [TENSOR]}).encode()
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
TE = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


def _raw(stack, data: bytes) -> bytes:
    """The bytes received until the gateway closes the connection or, once it has answered, is
    silent for half a second."""
    with socket.create_connection(("127.0.0.1", stack.gateway_port)) as connection:
        connection.sendall(data)
        connection.settimeout(30)  # every request here is answered, late on a busy machine
        received = connection.recv(65536)
        connection.settimeout(0.5)
        try:
            while part := connection.recv(65536):
                received += part
        except TimeoutError:
            pass
        return received


def _post(stack, headers: bytes, body: bytes, version: bytes = b"1.1") -> bytes:
    key = f"Authorization: Bearer {stack.key}\r\n".encode()
    line = b"POST " + INFER.encode() + b" HTTP/" + version + b"\r\nHost: x\r\n"
    return _raw(stack, line + key + headers + b"\r\n" + body)


def _statuses(response: bytes) -> list[bytes]:
    return [part[:3] for part in response.split(b"HTTP/1.1 ")[1:]]


def test_the_honest_request(echo):
    assert _statuses(_post(echo, LENGTH, BODY)) == [b"200"]
    assert _statuses(_post(echo, b"Transfer-Encoding: chunked\r\n", CHUNKED)) == [b"200"]


SMUGGLED = {
    "CL and TE": (LENGTH + b"Transfer-Encoding: chunked\r\n", CHUNKED),
    "TE and CL": (b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", CHUNKED),
    "the same CL twice": (LENGTH * 2, BODY),
    "another CL": (LENGTH + b"Content-Length: 3\r\n", BODY),
    "CL as a list": (LENGTH[:-2] + b", 3\r\n", BODY),
    "CL with a sign": (b"Content-Length: +%d\r\n" % len(BODY), BODY),
    "CL below zero": (b"Content-Length: -1\r\n", BODY),
    "CL beyond 64 bits": (b"Content-Length: 99999999999999999999999\r\n", BODY),
    "bare LF": (LENGTH.replace(b"\r\n", b"\n"), BODY),
    "bare CR": (b"X: a\rContent-Length: 3\r\n" + LENGTH, BODY),
    "a folded line": (b"X: a\r\n Content-Length: 3\r\n" + LENGTH, BODY),
    "a blank before the colon": (b"Transfer-Encoding : chunked\r\n", CHUNKED),
    "an unknown coding": (b"Transfer-Encoding: xchunked\r\n", CHUNKED),
    "TE twice": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", CHUNKED),
    "LF in a chunk's extension": (TE, CHUNKED.replace(b"\r", b";\n", 1)),
    "chunks with bare LF": (TE, CHUNKED.replace(b"\r\n", b"\n")),
    "a chunk beyond 64 bits": (TE, b"10000000000000000f\r\n"),
    "NUL in a header": (b"X: a\0b\r\n" + LENGTH, BODY),
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_smuggling(echo, name):
    """One refusal, and none of the rest is read as a second request."""
    headers, body = SMUGGLED[name]
    second = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    response = _post(echo, headers, body + second)
    assert _statuses(response)[:1] == [b"400"]
    assert b'"status":"ok"' not in response


def test_ambiguous_codings(echo):
    """Their framing is clear to us, but may not be to a proxy."""
    coded = b"Connection: close\r\nTransfer-Encoding: gzip, chunked\r\n"
    assert _statuses(_post(echo, coded, CHUNKED)) == [b"400"]
    assert _statuses(_post(echo, TE, CHUNKED, b"1.0")) == [b"400"]


@pytest.mark.parametrize(
    "header",
    [
        b"Authorization: Bearer nonsense",
        b"Host: y",
        b"Content-Encoding: gzip\r\nContent-Encoding: identity",
        b"Inference-Header-Content-Length: 3\r\nInference-Header-Content-Length: %d" % len(BODY),
    ],
)
def test_a_decisive_header_is_sent_once(echo, header):
    """A proxy in front of us may have used the other one."""
    response = _post(echo, header + b"\r\nConnection: close\r\n" + LENGTH, BODY)
    assert _statuses(response) == [b"400"]
    assert b"is sent twice" in response


def test_an_identity_is_sent_once_in_grpc_too(echo):
    with grpc.insecure_channel(f"127.0.0.1:{echo.grpc_api_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        both = [("authorization", f"Bearer {key}") for key in ("nonsense", echo.key)]
        for metadata in (both, both[::-1]):
            with pytest.raises(grpc.RpcError) as caught:
                stub.ServerLive(service_pb2.ServerLiveRequest(), metadata=metadata, timeout=30)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


PATHS = [
    "/v2/models/identity_fp32%2f..%2fecho_llm",
    "/v2/models/../models/echo_llm",
    "/v2/models/%2e%2e/echo_llm",
    "/v2/models/identity_fp32%00",
    "/v2/models/identity_fp32;a=b",
    "/v2/models/identity_fp32/",
    "//v2/models/identity_fp32",
    "/V2/models/identity_fp32",
    "/v2/models/identity_fp32/versions/1%2f..%2f..",
    "/v2/models/identity_fp32/versions/-1",
    "/v2/repository/index",
    "/v2/systemsharedmemory/status",
    "/v2/logging",
    "/v2/trace/setting",
    "/healthz/../v1/models",
    "/docs/../v1/models",
    "/static-offline-docs/..%2f..%2f..%2fapp.py",
    "/metrics",
    "/admin/policy",
]


@pytest.mark.parametrize("path", PATHS)
def test_paths(echo, path):
    key = f"Authorization: Bearer {echo.key}\r\n".encode()
    line = b"GET " + path.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    assert _statuses(_raw(echo, line + key + b"\r\n")) == [b"404"]


def _binary(raw: bytes, shape: list[int]) -> tuple[bytes, dict[str, str]]:
    tensor = {
        "name": "text_input",
        "shape": shape,
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + raw, {"inference-header-content-length": str(len(head))}


DOCUMENTS = {
    "deep, cut off": b"[" * 1_000_000,
    "deep and whole": b'{"inputs":' + b"[" * 1000 + b"]" * 1000 + b"}",
    "deep enough": b'{"inputs":' + b"[" * 200 + b"]" * 200 + b"}",
    "a key twice": b'{"inputs":[],"inputs":[]}',
    "a key twice, escaped": b'{"inputs":[],"in\\u0070uts":[]}',
    "a number without end": b'{"inputs":[' + b"9" * 100_000 + b"]}",
    "infinity": b'{"inputs":[1e999]}',
    "no UTF-8": b'{"inputs":"\xff"}',
    "a surrogate": b'{"inputs":"\\ud800"}',
}


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("path", [INFER, "/v1/chat/completions", "/v1/embeddings", "/v1/echo_llm"])
def test_documents(echo, name, path):
    assert echo.post(path, content=DOCUMENTS[name]).status_code in (400, 404, 422)


@pytest.mark.parametrize(
    ("raw", "shape"),
    [
        (struct.pack("<I", 2**32 - 1) + b"a", [1]),
        (struct.pack("<I", 2**31) + b"a", [1]),
        (b"\1\0\0", [1]),
        (bytes(4 * 5_000_000), [1]),
        (bytes(4 * 5_000_000), [5_000_000]),
    ],
)
def test_strings_are_not_counted_beyond_the_shape(echo, raw, shape):
    body, headers = _binary(raw, shape)
    path = f"{echo.url}/v2/models/echo_llm/infer"
    response = httpx.post(path, content=body, headers={**echo.headers, **headers}, timeout=20)
    assert response.status_code == 400
