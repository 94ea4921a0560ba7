"""Large and odd requests at every HTTP API, on a real Triton: who waits for whom, what they take,
and which row is at fault. The gateway runs in this process, so that its loop can be watched."""

import asyncio
import contextlib
import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import orjson
import pytest
import uvicorn

from gateway.app import create_app
from gateway.http.bounded import BoundedProtocol
from gateway.policy.principal import Grant
from gateway.settings import Settings
from serving.triton.ports import free_ports
from tests.e2e.grpc_models import serving
from tests.gateway.api.v2.test_large_bodies import SIZE, filled, peak_bytes
from tests.running import ROOT
from tidegate.app.key_store import KeyStore

ECHO = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([
            pb_utils.Tensor(tensor.name() + "_back", tensor.as_numpy())
            for tensor in request.inputs()]) for request in requests]
"""
# Counts bytes and returns a vector; text that starts with "bad" is refused as our own steps refuse
# it; "wait" takes a while.
TEXTS = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
        for row, text in enumerate(texts):
            if text.startswith(b"bad"):
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(
                    f"[tidegate:invalid_input row={row}] the text is bad: send a better one",
                    pb_utils.TritonError.INVALID_ARG))
        if b"wait" in texts:
            time.sleep(0.05)
        counts = np.array([[len(text)] for text in texts], np.int32)
        return pb_utils.InferenceResponse([
            pb_utils.Tensor("vector", np.repeat(counts, 384, 1).astype(np.float32)),
            pb_utils.Tensor("token_count", counts)])
"""
# Returns the sum of each row of x.
SUMS = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        for row, values in enumerate(x):
            if values[0] < 0:
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(
                    f"[tidegate:invalid_input row={row}] the first value is below 0",
                    pb_utils.TritonError.INVALID_ARG))
        sums = x.sum(axis=1, keepdims=True, dtype=np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("sum", sums)])
"""
TEXT_SCHEMA = {
    "purpose": "Counts",
    "request": {
        "type": "object",
        "required": ["text"],
        "additionalProperties": False,
        "properties": {
            "text": {"type": "string", "minLength": 1, "x-tensor": "text"},
            "truncate": {"type": "boolean", "x-parameter": "truncate"},
        },
    },
    "response": {
        "type": "object",
        "properties": {"count": {"type": "integer", "x-tensor": "token_count"}},
    },
    "example": {"text": "a"},
    "openai": {"embeddings": {"text": "text", "vector": "vector", "tokens": "token_count"}},
}
SUM_SCHEMA = {
    "purpose": "Adds up",
    "request": {
        "type": "object",
        "required": ["x"],
        "additionalProperties": False,
        "properties": {"x": {"type": "array", "items": {"type": "number"}, "x-tensor": "x"}},
    },
    "response": {
        "type": "object",
        "properties": {"sum": {"type": "number", "x-tensor": "sum"}},
    },
    "example": {"x": [1, 2]},
}
FILE_SCHEMA = {
    "purpose": "Counts the bytes of a file",
    "request": {
        "type": "object",
        "required": ["text"],
        "properties": {"text": {"type": "object", "x-tensor": "text", "x-bytes": True}},
    },
    "response": TEXT_SCHEMA["response"],
    "example": {"text": {"b64": "YQ=="}},
}


def with_endpoint(endpoint_schema: dict) -> str:
    text = json.dumps(endpoint_schema).replace('"', '\\"')
    return f'parameters {{ key: "tidegate.endpoint" value {{ string_value: "{text}" }} }}\n'


def text_config(rows: int, endpoint_schema: dict) -> str:
    return (
        f"max_batch_size: {rows}\n"
        'input { name: "text" data_type: TYPE_STRING dims: 1 }\n'
        'output { name: "vector" data_type: TYPE_FP32 dims: 384 }\n'
        'output { name: "token_count" data_type: TYPE_INT32 dims: 1 }\n'
        + with_endpoint(endpoint_schema)
    )


def echo_config(dtype: str, dims: str, rows: int = 0, more: str = "") -> str:
    return (
        f"max_batch_size: {rows}\n"
        f'input {{ name: "x" data_type: TYPE_{dtype} dims: [{dims}] }}\n{more}'
        f'output {{ name: "x_back" data_type: TYPE_{dtype} dims: [{dims}] }}\n'
    )


SECOND = (
    'input {{ name: "z" data_type: TYPE_FP32 dims: 1 {}}}\n'
    'output {{ name: "z_back" data_type: TYPE_FP32 dims: 1 }}\n'
)
DTYPES = ("BOOL", "UINT8", "UINT16", "INT8", "INT16", "INT32", "INT64", "UINT64", "FP16", "FP32")
RAW = {
    **{f"raw_{dtype}": (ECHO, echo_config(dtype, "-1")) for dtype in (*DTYPES, "FP64")},
    "raw_rows": (ECHO, echo_config("FP32", "-1", 8)),
    "raw_open": (ECHO, echo_config("INT16", "2, -1", 8)),
    "raw_fixed": (ECHO, echo_config("FP32", "2, 2", 8)),
    "raw_two_open": (ECHO, echo_config("FP32", "-1, -1")),
    "raw_string": (ECHO, echo_config("STRING", "1")),
    "raw_string_rows": (ECHO, echo_config("STRING", "1", 8)),
    "raw_string_1_1": (ECHO, echo_config("STRING", "1, 1")),
    "raw_strings": (ECHO, echo_config("STRING", "-1")),
    "raw_two_strings": (ECHO, echo_config("STRING", "2")),
    "raw_two": (ECHO, echo_config("FP32", "-1", 0, SECOND.format(""))),
    "raw_optional": (ECHO, echo_config("FP32", "-1", 0, SECOND.format("optional: true "))),
}
MODELS = {
    "texts": (TEXTS, text_config(32, TEXT_SCHEMA)),
    "one_text": (TEXTS, text_config(1, TEXT_SCHEMA) + "instance_group { count: 2 }\n"),
    "scans": (TEXTS, text_config(8, FILE_SCHEMA)),
    "sums": (
        SUMS,
        'max_batch_size: 4\ninput { name: "x" data_type: TYPE_FP32 dims: -1 }\n'
        'output { name: "sum" data_type: TYPE_FP32 dims: 1 }\n' + with_endpoint(SUM_SCHEMA),
    ),
    "classes": (ECHO, echo_config("FP32", "4")),
    "echo_llm": (
        (ROOT / "tests/models/echo_llm/model.py").read_text(),
        (ROOT / "tests/models/echo_llm/config.pbtxt").read_text().replace('backend: "python"', ""),
    ),
    **RAW,
}


class WatchedGateway:
    """A gateway whose event loop is watched: ``longest`` is the most CPU time (s) that this process
    spent while the loop was blocked."""

    def __init__(self, triton, home, **settings):
        home.mkdir()
        store = KeyStore(home / "keys.toml", home / "pepper")
        key = store.create("tester", Grant())[1]
        self.headers = {"Authorization": f"Bearer {key}"}
        reader = store.create("reader", Grant(scopes=("read",)))[1]
        self.reader = {"Authorization": f"Bearer {reader}"}
        [self.port] = free_ports(1)
        self.triton_url = f"http://127.0.0.1:{triton.options.ports.http}"
        self._settings = Settings(
            replicas=(triton.control.address,),
            triton_key_file=triton.options.work_dir / "triton.key",
            keys_file=home / "keys.toml",
            pepper_file=home / "pepper",
            policy_file=home / "gateway.toml",
            state_folder=home,
            **settings,
        )
        self.gateway = self._server = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.longest = 0.0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self):
        app = create_app(self._settings)  # its channels belong to this loop
        self.gateway = app.gateway
        config = uvicorn.Config(
            app, port=self.port, http=BoundedProtocol, ws="none", log_config=None
        )
        self._server = uvicorn.Server(config)
        watch = asyncio.create_task(self._watch())
        await self._server.serve()
        watch.cancel()

    async def _watch(self):
        while True:
            before = time.process_time()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.process_time() - before)

    def __enter__(self):
        self._thread.start()
        deadline = time.monotonic() + 30
        while not (self._server and self._server.started and self.gateway.catalogue.models):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self

    def __exit__(self, *error):
        self._server.should_exit = True
        self._thread.join(20)

    def post(self, path, body, **headers):
        """The status, headers and body of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", path, body, {**self.headers, **headers})
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()

    def post_json(self, path, document):
        status, _, body = self.post(path, orjson.dumps(document))
        return status, orjson.loads(body)


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("triton"), MODELS) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(triton, tmp_path_factory):
    with WatchedGateway(triton, tmp_path_factory.mktemp("gateway") / "home") as running:
        yield running


# --- many rows -----------------------------------------------------------------------------


def test_a_thousand_rows_are_answered_one_by_one(gateway):
    rows = [{"text": "x" * (1 + index % 50)} for index in range(1024)]
    status, response = gateway.post_json("/v1/one_text", {"inputs": rows})
    assert status == 200
    assert [row["count"] for row in response["outputs"]] == [len(row["text"]) for row in rows]


def test_two_thousand_inputs_are_embedded(gateway):
    texts = ["x" * (1 + index % 50) for index in range(2048)]
    status, response = gateway.post_json("/v1/embeddings", {"model": "one_text", "input": texts})
    assert status == 200
    assert [row["embedding"][0] for row in response["data"]] == [len(text) for text in texts]
    assert [row["index"] for row in response["data"]] == list(range(2048))
    assert response["usage"]["total_tokens"] == sum(map(len, texts))


def test_one_request_takes_a_small_window_of_the_pool(gateway):
    rows = [{"text": "wait"}] * 60
    replica = gateway.gateway.pool.replicas[0]
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(gateway.post_json, "/v1/one_text", {"inputs": rows})
        most = 0
        while not pending.done():
            most = max(most, replica.inflight)
            time.sleep(0.001)
        assert pending.result()[0] == 200
    assert 2 <= most <= 8


def test_a_pool_that_is_smaller_than_the_window_serves_many_rows(triton, tmp_path):
    with WatchedGateway(triton, tmp_path / "home", max_inflight=2) as gateway:
        status, response = gateway.post_json("/v1/one_text", {"inputs": [{"text": "a"}] * 100})
    assert status == 200, response


def test_the_first_failure_ends_the_others(gateway):
    rows = [{"text": "bad"}, *[{"text": "wait"}] * 1000]
    before = _answered(gateway, "one_text")
    status, response = gateway.post_json("/v1/one_text", {"inputs": rows})
    assert (status, response["param"]) == (422, "inputs.0")
    assert _answered(gateway, "one_text") - before < 100


def _answered(gateway, model: str) -> int:
    """How many requests the model has answered, by Triton's count."""
    url = f"http://127.0.0.1:{gateway.port}/v2/models/{model}/stats"
    statistics = httpx.get(url, headers=gateway.headers).json()["model_stats"][0]
    return int(statistics["inference_stats"]["success"].get("count", 0))


# --- which row -----------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["texts", "one_text"])
def test_a_text_is_named_as_the_caller_counts(gateway, model):
    rows = [{"text": "a"} for _ in range(130)]
    rows[100] = {"text": "bad"}
    rows[7] = {"text": "a", "truncate": True}  # goes in its own batch
    status, response = gateway.post_json(f"/v1/{model}", {"inputs": rows})
    assert (status, response["param"]) == (422, "inputs.100")
    assert response["detail"] == "inputs.100: the text is bad: send a better one"
    status, response = gateway.post_json(
        "/v1/embeddings", {"model": model, "input": [row["text"] for row in rows]}
    )
    assert (status, response["error"]["param"]) == (400, "input.100")
    assert response["error"]["message"] == "input.100: the text is bad: send a better one"


def test_a_row_that_was_sent_alone_needs_no_number(gateway):
    status, response = gateway.post_json("/v1/texts", {"text": "bad"})
    assert (status, response["detail"]) == (422, "the text is bad: send a better one")
    status, response = gateway.post_json("/v1/embeddings", {"model": "texts", "input": "bad"})
    assert (status, response["error"]["param"]) == (400, "input")


def test_rows_that_were_regrouped_by_shape_keep_their_numbers(gateway):
    rows = [{"x": [1.0] * (1 + index % 3)} for index in range(40)]
    rows[31] = {"x": [-1.0] * 2}
    status, response = gateway.post_json("/v1/sums", {"inputs": rows})
    assert (status, response["param"]) == (422, "inputs.31")
    assert response["detail"] == "inputs.31: the first value is below 0"


def test_the_gateways_own_refusals_name_the_row_too(gateway):
    rows = [{"x": [1.0, 2.0]} for _ in range(10)]
    rows[6] = {"x": [1.0, 1e39]}
    status, response = gateway.post_json("/v1/sums", {"inputs": rows})
    assert (status, response["param"]) == (422, "inputs.6")
    files = [{"text": {"b64": "YQ=="}} for _ in range(5)]
    files[3] = {"text": {"b64": "!"}}
    status, response = gateway.post_json("/v1/scans", {"inputs": files})
    assert (status, response["param"]) == (422, "inputs.3.text")


def test_a_v2_caller_sees_its_own_row(gateway):
    texts = ["a", "b", "bad", "c"]
    tensor = {"name": "text", "shape": [4, 1], "datatype": "BYTES", "data": texts}
    status, response = gateway.post_json("/v2/models/texts/infer", {"inputs": [tensor]})
    assert status == 400
    assert response["error"].startswith("row 2: the text is bad: send a better one")


# --- Triton's own odd requests ---------------------------------------------------------------

BODIES = [b"", b"\x01", bytes(8), bytes(range(1, 17)), b"\x01\x00" * 12, bytes(32), bytes(33)]


@pytest.mark.parametrize("model", RAW)
def test_a_raw_binary_request_is_answered_as_triton_answers_it(gateway, model):
    path = f"/v2/models/{model}/infer"
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    for body in BODIES:
        theirs = httpx.post(gateway.triton_url + path, content=body, headers=headers)
        status, response_headers, ours = gateway.post(path, body, **headers)
        assert status == theirs.status_code, (body, ours, theirs.content)
        if status != 200:
            assert b"raw" in ours or b"bytes" in ours or b"elements" in ours, ours
            continue
        # Triton omits the header when no bytes follow.
        size = int(theirs.headers.get("Inference-Header-Content-Length", len(theirs.content)))
        length = int(response_headers["inference-header-content-length"])
        assert ours[length:] == theirs.content[size:]
        ours_json, theirs_json = orjson.loads(ours[:length]), orjson.loads(theirs.content[:size])
        assert ours_json["outputs"] == theirs_json["outputs"]


@pytest.mark.parametrize("value", ["2", True, False, 0, -1, 1.5, 2**64, [], {}, 1, 3, 9, 10**9])
def test_classification_is_refused_as_triton_refuses_it(gateway, value):
    tensor = {"name": "x", "shape": [4], "datatype": "FP32", "data": [1, 4, 2, 3]}
    output = {"name": "x_back", "parameters": {"classification": value}}
    document = {"inputs": [tensor], "outputs": [output]}
    path = "/v2/models/classes/infer"
    theirs = httpx.post(gateway.triton_url + path, json=document)
    status, _, body = gateway.post(path, json.dumps(document))
    ours = orjson.loads(body)
    # Triton answers 500 where JSON cannot represent the value.
    assert (status, theirs.status_code) in ((200, 200), (400, 500), (400, 400)), ours
    if status == 200:
        assert ours["outputs"] == theirs.json()["outputs"]


# --- nulls, and lists ------------------------------------------------------------------------


def test_null_is_the_same_as_absent(gateway):
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1], "parameters": None}
    output = {"name": "x_back", "parameters": None}
    for document in (
        {"inputs": [tensor], "id": None, "parameters": None, "outputs": None},
        {"inputs": [tensor], "outputs": [output], "parameters": {"a": None, "timeout": None}},
    ):
        assert gateway.post_json("/v2/models/raw_FP32/infer", document)[0] == 200
    document = {"x": [1, 2], "z": None, "id": None, "parameters": None}
    assert gateway.post_json("/v2/models/raw_optional/generate", document)[0] == 200
    assert gateway.post_json("/v1/texts", {"text": "a", "truncate": None})[0] == 200
    embed = {"model": "texts", "input": "a", "encoding_format": None, "dimensions": None}
    assert gateway.post_json("/v1/embeddings", {**embed, "user": None})[0] == 200
    optional = ("stop", "stream", "stream_options", "max_tokens", "temperature", "user", "seed")
    nothing = dict.fromkeys((*optional, "tools", "n", "logit_bias", "response_format"))
    turn = {"role": "user", "content": "hello", "name": None, "tool_calls": None}
    for path, body in (
        ("/v1/chat/completions", {"messages": [turn]}),
        ("/v1/completions", {"prompt": "hello", "echo": None, "suffix": None}),
    ):
        assert gateway.post_json(path, {"model": "echo_llm", **body, **nothing})[0] == 200
    streamed = {"stream": True, "stream_options": {"include_usage": None}}
    body = {"model": "echo_llm", "messages": [turn], **streamed}
    assert gateway.post("/v1/chat/completions", orjson.dumps(body))[0] == 200


def test_v2_lists_its_models(gateway):
    response = httpx.get(gateway.url + "/v2/models", headers=gateway.headers)
    assert response.json() == {"models": sorted(MODELS)}
    unknown = httpx.get(gateway.url + "/v2/models/nobody", headers=gateway.headers)
    assert unknown.status_code == 404
    assert "GET /v2/models" in unknown.json()["error"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "texts", "input": "a"}),
        ("/v1/chat/completions", {"model": "texts", "messages": []}),
        ("/v1/completions", {"model": "texts", "prompt": "a"}),
        ("/v1/texts", {"text": "a"}),
        ("/v2/models/texts/infer", {}),
    ],
)
def test_a_caller_who_may_only_read_learns_which_model(gateway, path, body):
    response = httpx.post(gateway.url + path, json=body, headers=gateway.reader)
    assert response.status_code == 403
    assert "you may not infer with 'texts'" in response.text
    long = httpx.post(gateway.url + path, content=b" " * 100_000, headers=gateway.reader)
    assert long.status_code in (403, 413)


ODD = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": ODD}], "stream": True}),
        ("/v1/completions", {"prompt": ODD, "stream": True, "echo": True}),
        ("/v2/models/echo_llm/generate_stream", {"text_input": ODD, "stream": True}),
    ],
)
def test_line_ends_are_escaped_in_events(gateway, path, body):
    request = body if path.startswith("/v2") else {"model": "echo_llm", **body}
    with httpx.stream(
        "POST", gateway.url + path, json=request, headers=gateway.headers
    ) as response:
        assert response.status_code == 200, response.read()
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    texts = "".join(map(text_of, (line[6:] for line in lines)))
    for odd in ("\u2028", "\u2029", "\x85"):
        assert odd in texts or odd in ODD.split()  # the echo model splits at some of them


def text_of(data: str) -> str:
    if data == "[DONE]":
        return ""
    document = json.loads(data)
    if "choices" not in document:
        return document["text_output"]
    choice = (document["choices"] or [{}])[0]
    return choice.get("text") or choice.get("delta", {}).get("content") or ""


# --- ten megabytes -----------------------------------------------------------------------------

TEXT = 'He said: "a, b" {} [1] \\ ' * 380_000
FORM = b"--xx\r\n" + b'Content-Disposition: form-data; name="text"; filename="a"\r\n\r\n'


def body_of(head: dict, field: str, value: bytes) -> bytes:
    return b"".join(
        (
            orjson.dumps(head)[:-1],
            b"," if len(head) else b"",
            b'"',
            field.encode(),
            b'":',
            value,
            b"}",
        )
    )


CHAT = {"model": "echo_llm", "max_tokens": 3}
EMBED = {"model": "texts"}
JSON, MULTIPART = "application/json", "multipart/form-data; boundary=xx"
V2_INPUT = b'{"inputs":[{"name":"x","shape":[%d],"datatype":"FP32","data":%s}]}'
FLOATS = b"0.12345678901234567,"
# An API's path, the rest of its body, and its large field.
APIS = {
    "tasks": ("/v1/texts", {}, "inputs"),
    "a task": ("/v1/texts", {}, "text"),
    "numbers": ("/v1/sums", {}, "x"),
    "embeddings": ("/v1/embeddings", EMBED, "input"),
    "chat": ("/v1/chat/completions", CHAT, "messages"),
    "completions": ("/v1/completions", CHAT, "prompt"),
    "generate": ("/v2/models/raw_FP32/generate", {}, "x"),
    "V2": ("/v2/models/raw_FP32/infer", {}, "inputs"),
}
ABUSES = {
    "objects": lambda size: filled(b"{},", size),
    "short texts": lambda size: filled(b'"a",', size),
    "keys": lambda size: b"{" + b",".join(b'"k%d":0' % n for n in range(size // 12)) + b"}",
}


def abusive(api: str, abuse: str, size: int = SIZE) -> bytes:
    _, head, field = APIS[api]
    return body_of(head, field, ABUSES[abuse](size))


# path, body, Content-Type, the expected status
LARGE = {
    "a form of many parts": lambda: ("/v1/scans", FORM * 90_000 + b"--xx--", MULTIPART, 422),
    "a form of dashes": lambda: (
        "/v1/scans",
        FORM + b"\r\n--x" * (SIZE // 5) + b"\r\n--xx--\r\n",
        MULTIPART,
        200,
    ),
    "a file": lambda: ("/v1/scans", FORM + b"a" * SIZE + b"\r\n--xx--\r\n", MULTIPART, 200),
    "base64": lambda: (
        "/v1/scans",
        b'{"text":{"b64":"' + b"YWFh" * (SIZE // 4) + b'"}}',
        JSON,
        200,
    ),
    "a long text": lambda: ("/v1/texts", orjson.dumps({"text": TEXT}), JSON, 200),
    "rows": lambda: (
        "/v1/sums",
        orjson.dumps({"inputs": [{"x": [0.123456789] * 800}] * 1000}),
        JSON,
        200,
    ),
    "a text to embed": lambda: (
        "/v1/embeddings",
        orjson.dumps({**EMBED, "input": TEXT}),
        JSON,
        200,
    ),
    "a long conversation": lambda: (
        "/v1/chat/completions",
        orjson.dumps({**CHAT, "messages": [{"role": "user", "content": TEXT[:1000]}] * 9000}),
        JSON,
        200,
    ),
    "a long prompt": lambda: (
        "/v1/completions",
        orjson.dumps({**CHAT, "prompt": TEXT}),
        JSON,
        200,
    ),
    "V2 floats": lambda: (
        "/v2/models/raw_FP32/infer",
        V2_INPUT % (500_001, filled(FLOATS)),
        JSON,
        200,
    ),
    "V2 short floats": lambda: (
        "/v2/models/raw_FP32/infer",
        V2_INPUT % (2_500_001, filled(b"0.5,")),
        JSON,
        200,
    ),
    "generate floats": lambda: (
        "/v2/models/raw_FP32/generate",
        b'{"x":' + filled(FLOATS) + b"}",
        JSON,
        200,
    ),
}


def watched(gateway, path: str, body: bytes, content_type: str, right: set[int]) -> None:
    """Assert how long the loop was blocked, and how long the request took."""

    def ask():
        gateway.longest = 0.0
        status, _, response = gateway.post(path, body, **{"Content-Type": content_type})
        assert status in right, response[:300]
        if status != 200:
            assert len(response) < 1000, response
        return gateway.longest

    grown = peak_bytes(ask)
    longest = min(ask() for _ in range(2))
    print(f"{path} {body[:30]!r}: {longest * 1e3:.0f} ms, {grown / len(body):.1f}")  # noqa: T201
    assert longest < 0.1
    assert grown < 10 * len(body)


@pytest.mark.parametrize("load", LARGE)
def test_ten_megabytes_block_nobody(gateway, load):
    path, body, content_type, right = LARGE[load]()
    # On a busy machine the fake language model may not finish in time.
    watched(gateway, path, body, content_type, {right, 504})


@pytest.mark.parametrize("abuse", ABUSES)
@pytest.mark.parametrize("api", APIS)
def test_ten_megabytes_of_abuse_block_nobody(gateway, api, abuse):
    watched(gateway, APIS[api][0], abusive(api, abuse), JSON, {400, 422})


@pytest.mark.parametrize("abuse", ABUSES)
@pytest.mark.parametrize("api", APIS)
def test_the_time_grows_at_most_linearly_with_the_body(gateway, api, abuse):
    def seconds(size: int) -> float:
        body, taken = abusive(api, abuse, size), []
        for _ in range(6):
            started = time.process_time()
            assert gateway.post(APIS[api][0], body)[0] in (400, 422)
            taken.append(time.process_time() - started)
        return min(taken)

    few, many = seconds(100_000), seconds(1_000_000)
    # Ten times as much, which may not fit into the caches; if it were quadratic, 100 times.
    assert many < 30 * max(few, 0.004)
