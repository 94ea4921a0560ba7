"""Bad requests from attackers and tired users get the right status and a helpful message in a
second."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from gateway.background import ACCESS_CHECK_S
from tests.running import wait_until

INFER = "/v2/models/identity_fp32/infer"
GOOD = {"name": "INPUT0", "shape": [1, 3], "datatype": "FP32", "data": [1.5, 2, 3]}


def _post(stack, path: str, body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    # The timeout is for a hang: the worst of these once took minutes.
    return httpx.post(
        stack.url + path, content=body, headers={**stack.headers, **(headers or {})}, timeout=20
    )


def _with(**changes) -> bytes:
    return json.dumps({"inputs": [{**GOOD, **changes}]}).encode()


@pytest.fixture(autouse=True)
def still_serving(stack):
    """After each of these tests the server still answers the next caller."""
    yield
    assert _post(stack, INFER, _with()).status_code == 200
    assert _post(stack, "/v1/text_embedding", b'{"text": "hello"}').status_code == 200


V2_CASES = {
    "wrong dtype": (_with(datatype="INT32", data=[1, 2, 3]), "is FP32, not INT32"),
    "unknown dtype": (_with(datatype="FLOAT"), "no datatype 'FLOAT'"),
    "wrong rank": (_with(shape=[3]), "does not fit [-1, -1]"),
    "shape larger than data": (_with(shape=[1, 4]), "needs 16 bytes"),
    "shape smaller than data": (_with(shape=[1, 2]), "needs 8 bytes"),
    "negative dim": (_with(shape=[1, -3]), "dimensions are 0 to"),
    "dims that overflow": (_with(shape=[2**62, 2**62]), "dimensions are 0 to"),
    "product that overflows": (_with(shape=[2**31 - 1, 2**31 - 1]), "needs"),
    "fractional dim": (_with(shape=[1, 3.0]), "dimensions are 0 to"),
    "boolean dim": (_with(shape=[True, 3]), "dimensions are 0 to"),
    "shape of another kind": (_with(shape="1,3"), "shape must be a list"),
    "too many rows": (_with(shape=[65, 1], data=[1] * 65), "takes 1 to 64"),
    "no rows": (_with(shape=[0, 3], data=[]), "takes 1 to 64"),
    "missing tensor": (b'{"inputs": []}', "at least one tensor"),
    "no inputs": (b"{}", "at least one tensor"),
    "misspelt tensor": (_with(name="INPUT1"), "it takes INPUT0"),
    "tensor without a name": (_with(name=""), "'name' must be a non-empty string"),
    "same tensor twice": (json.dumps({"inputs": [GOOD, GOOD]}).encode(), "at most 1: INPUT0"),
    "extra tensor": (
        json.dumps({"inputs": [GOOD, {**GOOD, "name": "EXTRA"}]}).encode(),
        "at most 1: INPUT0",
    ),
    "unknown output": (
        json.dumps({"inputs": [GOOD], "outputs": [{"name": "OUT"}]}).encode(),
        "it has OUTPUT0",
    ),
    "text for numbers": (_with(data=["1", "2", "3"]), "must not contain str"),
    "null for a number": (_with(data=[1, None, 3]), "must not contain NoneType"),
    "true for a number": (_with(data=[1, True, 3]), "must not contain bool"),
    "a number too large for FP32": (_with(data=[1e39, 2, 3]), "does not fit FP32"),
    "an integer without end": (
        _with().replace(b"1.5", b"9" * 400),
        "number is infinity",
    ),
    "ragged nesting": (_with(shape=[2, 2], data=[[1, 2], [3]]), "not nested like shape"),
    "nested too deeply": (
        _with(shape=[1, 3], data=[[[1], [2], [3]]]),
        "nested more deeply than shape",
    ),
    "data that is no list": (_with(data=3), "needs 'data'"),
    "NaN": (b'{"inputs": [{"name": "INPUT0", "data": [NaN]}]}', "no NaN or Infinity"),
    "Infinity": (b'{"inputs": [{"name": "INPUT0", "data": [-Infinity]}]}', "no NaN or Infinity"),
    "10,000 deep": (b'{"inputs":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested too deeply"),
    "a million deep": (b"[" * 1_000_000, "not JSON"),
    "cut off": (_with()[:-5], "not JSON"),
    "not JSON": (b"\xff\xfe\x00", "not JSON"),
    "empty body": (b"", "not JSON"),
    "a list": (b"[1, 2]", "must be a JSON object"),
    "inputs of another kind": (b'{"inputs": [1]}', "must be an object"),
    "shared memory": (
        _with(parameters={"shared_memory_region": "x", "shared_memory_byte_size": 12}),
        "shared memory cannot be used",
    ),
    "a parameter of another kind": (
        json.dumps({"inputs": [GOOD], "parameters": {"a": [1]}}).encode(),
        "must be a string, a number or a boolean",
    ),
}


@pytest.mark.parametrize("case", V2_CASES)
def test_v2_refuses(stack, case):
    body, message = V2_CASES[case]
    response = _post(stack, INFER, body)
    assert response.status_code == 400, response.text
    assert list(response.json()) == ["error"]
    assert message in response.json()["error"]


BINARY = {"name": "INPUT0", "shape": [1, 3], "datatype": "FP32"}
THREE = np.array([1, 2, 3], dtype=np.float32).tobytes()


def _binary(size: int, tail: bytes, header_length: int | str | None = None, **changes):
    entry = {**BINARY, "parameters": {"binary_data_size": size}, **changes}
    header = json.dumps({"inputs": [entry]}).encode()
    length = len(header) if header_length is None else header_length
    return header + tail, {"Inference-Header-Content-Length": str(length)}


BINARY_CASES = {
    "truncated tail": (*_binary(12, THREE[:-1]), "only 11 bytes are left"),
    "tail too long": (*_binary(12, THREE + b"x"), "add up to 12"),
    "size does not fit the shape": (*_binary(8, THREE[:8]), "needs 12 bytes"),
    "negative size": (*_binary(-1, THREE), "integer of 0 or more"),
    "size that overflows": (*_binary(2**63, THREE), "bytes are left"),
    "both data and binary": (*_binary(12, THREE, data=[1, 2, 3]), "both"),
    "header length over the body": (*_binary(12, THREE, header_length=10_000), "must be 0 to"),
    "header length too short": (*_binary(12, THREE, header_length=20), "not JSON"),
    "header length 0": (*_binary(12, THREE, header_length=0), "needs 120 bytes"),
    "header length negative": (*_binary(12, THREE, header_length=-1), "must be 0 to"),
    "header length no number": (*_binary(12, THREE, header_length="abc"), "must be 0 to"),
    "header length enormous": (*_binary(12, THREE, header_length="9" * 5000), "must be 0 to"),
    "header length missing": (_binary(12, THREE)[0], {}, "not JSON"),
}


@pytest.mark.parametrize("case", BINARY_CASES)
def test_v2_binary_refuses(stack, case):
    body, headers, message = BINARY_CASES[case]
    response = _post(stack, INFER, body, headers)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    "raw",
    [b"\x05\x00\x00\x00hell", b"\x05\x00", b"\xff\xff\xff\xffx"],
    ids=["cut", "short", "huge"],
)
def test_v2_refuses_strings_that_are_cut_off(stack, raw):
    entry = {"name": "text", "shape": [1, 1], "datatype": "BYTES"}
    header = json.dumps(
        {"inputs": [{**entry, "parameters": {"binary_data_size": len(raw)}}]}
    ).encode()
    response = _post(
        stack,
        "/v2/models/text_embedding/infer",
        header + raw,
        {"Inference-Header-Content-Length": str(len(header))},
    )
    assert response.status_code == 400
    assert "cut off" in response.json()["error"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("x" * 100_000, "send at most 65536"),
        ("word " * 2_000, "truncate: true"),
        ("word " * 20_000, "send at most 65536"),
        ("x" * 2_000_000, "bytes: send at most"),
    ],
    ids=["empty", "blank", "100k letters", "too many tokens", "100k of words", "2M letters"],
)
def test_v2_refuses_texts(stack, text, message):
    entry = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    response = _post(
        stack, "/v2/models/text_embedding/infer", json.dumps({"inputs": [entry]}).encode()
    )
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]


def test_of_many_texts_at_once_each_gets_its_own_vector_and_a_bad_one_its_own_error(stack):
    """They share requests to Triton, over whichever API they came."""
    texts = ["hello", "where is my parcel?", "", "a longer text " * 12, "\u4f60\u597d", " \n"] * 8

    def vector(number: int) -> list[float] | int:
        text = texts[number]
        if number % 3:
            response = _post(stack, "/v1/text_embedding", json.dumps({"text": text}).encode())
            return response.json()["embedding"] if response.is_success else response.status_code
        entry = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
        request = {"inputs": [entry], "outputs": [{"name": "sentence_embedding"}]}
        path = "/v2/models/text_embedding/infer"
        response = _post(stack, path, json.dumps(request).encode())
        return (
            response.json()["outputs"][0]["data"] if response.is_success else response.status_code
        )

    alone = [vector(number) for number in range(12)]
    assert [type(one) for one in alone[:6]] == [list, list, int, list, list, int]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(vector, range(len(texts))))
    for number, result in enumerate(together):
        expected = alone[number % len(alone)]
        if isinstance(expected, int):
            assert result == expected, texts[number]
        else:
            np.testing.assert_allclose(result, expected, atol=2e-6)


def test_many_callers_share_requests_to_triton(stack):
    """As long as none of them is refused."""
    statistics = stack.url + "/v2/models/text_embedding/stats"

    def requests() -> int:
        (model,) = httpx.get(statistics, headers=stack.headers, timeout=20).json()["model_stats"]
        return int(model["inference_stats"]["success"]["count"])

    def call(number: int) -> int:
        body = json.dumps({"text": f"text {number}"}).encode()
        return _post(stack, "/v1/text_embedding", body).status_code

    # On a busy machine the callers may come one by one for a while.
    deadline = time.monotonic() + 60
    shared = 1.0
    while shared > 0.7:
        assert time.monotonic() < deadline, f"{shared:.2f} of the requests were sent to Triton"
        before = requests()
        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(call, range(96))) == {200}
        shared = (requests() - before) / 96


TASK_CASES = {
    "empty string": ({"text": ""}, "text"),
    "blank": ({"text": " \n"}, ""),
    "100,000 characters": ({"text": "x" * 100_000}, "text"),
    "too many tokens": ({"text": "word " * 2_000}, ""),
    "no field": ({}, ""),
    "another type": ({"text": 5}, "text"),
    "extra field": ({"text": "a", "txt": "b"}, ""),
    "a list": ([1], ""),
    "no rows": ({"inputs": []}, "inputs"),
    "too many rows": ({"inputs": [{"text": "a"}] * 1025}, "inputs"),
    "one bad row": ({"inputs": [{"text": "a"}, {"text": ""}]}, "inputs.1.text"),
    "row that is no object": ({"inputs": ["a"]}, "inputs.0"),
    "rows and a field": ({"inputs": [{"text": "a"}], "text": "b"}, ""),
    "truncate of another type": ({"text": "a", "truncate": "yes"}, "truncate"),
}


@pytest.mark.parametrize("case", TASK_CASES)
def test_task_refuses_with_a_problem(stack, case):
    body, param = TASK_CASES[case]
    response = _post(stack, "/v1/text_embedding", json.dumps(body).encode())
    problem = response.json()
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["code"] == "invalid_request"
    assert problem["status"] == 422
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem.get("param", "") == param
    assert len(problem["detail"]) < 500


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/no_such_model/infer", 404),
        ("/v2/models/text_embedding_onnx/infer", 404),  # an engine: internal
        ("/v2/models/identity_fp32/versions/99/infer", 404),
        ("/v2/models/identity_fp32/versions/latest/infer", 404),
        ("/v2/models/..%2f..%2fetc/infer", 404),
        ("/v2/models/%00/infer", 404),
        ("/v2/models/" + "x" * 5000 + "/infer", 404),
        ("/v2/repository/index", 404),
        ("/v2/systemsharedmemory/status", 404),
        ("/v2/logging", 404),
        ("/v1/no_such_pipeline", 404),
        ("/v1/identity_fp32", 404),  # served, but it has no endpoint schema
        ("/v1/text_embedding/", 404),
        ("/readyz", 405),
    ],
)
def test_unknown_paths(stack, path, status):
    response = _post(stack, path, _with())
    assert response.status_code == status, response.text
    assert len(response.text) < 600


@pytest.mark.parametrize("path", [INFER, "/v1/text_embedding", "/v1/embeddings"])
def test_a_body_over_the_limit(stack, path):
    body = b'{"text": "' + b"x" * (33 * 1024 * 1024) + b'"}'
    for content in (body, _chunks(body)):
        response = _post(stack, path, content, {})
        assert response.status_code == 413, response.text
        assert "33554432 bytes" in response.text


def _chunks(body: bytes):
    """A chunked body, without a Content-Length."""
    for start in range(0, len(body), 1 << 20):
        yield body[start : start + (1 << 20)]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip"])
def test_compressed_bodies_are_refused(stack, encoding):
    response = _post(stack, INFER, b"\x1f\x8b", {"Content-Encoding": encoding})
    assert response.status_code == 400
    assert "uncompressed" in response.json()["error"]


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Basic abc", "Bearer tg_short", "Bearer ☃", "Bearer " + "x" * 8000],
)
def test_no_valid_key(stack, authorization):
    headers = {} if authorization is None else {"Authorization": authorization.encode()}
    responses = [
        httpx.post(stack.url + path, content=b"not even JSON", headers=headers)
        for path in (INFER, "/v1/text_embedding", "/v1/embeddings", "/v1/nothing")
    ]
    assert {response.status_code for response in responses} == {401}
    assert "error" in responses[0].json()
    assert responses[1].json()["code"] == "unauthenticated"
    assert responses[2].json()["error"]["type"] == "authentication_error"
    assert {response.headers["www-authenticate"] for response in responses} == {"Bearer"}


def test_a_revoked_key_is_refused_once_the_keys_were_read_again(stack):
    assert ACCESS_CHECK_S <= 1
    created = json.loads(stack.tidegate("keys", "create", "short-lived", "--json").stdout)
    headers = {"Authorization": f"Bearer {created['key']}"}
    url = f"{stack.url}/v1/models"
    wait_until(lambda: httpx.get(url, headers=headers).status_code == 200, 30, "it is known")
    assert stack.tidegate("keys", "revoke", created["id"]).returncode == 0
    wait_until(lambda: httpx.get(url, headers=headers).status_code == 401, 30, "it is refused")


def test_v2_output_that_json_cannot_carry(stack):
    """NaN passes as binary data; as JSON it is refused with a hint to use binary data."""
    raw = np.array([1, np.nan, np.inf], dtype=np.float32).tobytes()
    entry = {**BINARY, "parameters": {"binary_data_size": 12}}
    for wants_binary, status in ((True, 200), (False, 400)):
        header = json.dumps(
            {"inputs": [entry], "parameters": {"binary_data_output": wants_binary}}
        ).encode()
        response = _post(
            stack, INFER, header + raw, {"Inference-Header-Content-Length": str(len(header))}
        )
        assert response.status_code == status
        assert response.content.endswith(raw) if wants_binary else "binary_data" in response.text
