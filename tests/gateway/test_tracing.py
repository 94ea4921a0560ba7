"""Traces: the context of a caller reaches Triton in any case; spans reach a collector if a setting
names one, and say nothing of the payload."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace.span import TraceState
from tritonclient.grpc import InferenceServerClient, service_pb2_grpc

from gateway.models.v2_request import V2Request
from gateway.settings import Settings, SettingsError
from gateway.upstream import http_upstream
from gateway.upstream.trace_context import read, upstream_metadata
from tests.gateway.every_api import V2_BODY, every_api, infer_input, llm_message
from tests.gateway.fake_llm import wait_for

SECRET = "velvet"  # in everything that is asked and answered
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
CHAT = {"model": "llm", "messages": [{"role": "user", "content": SECRET}]}


# --- the context, whether or not anything is exported ---------------------------------------------


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        ([PARENT], PARENT),
        ([PARENT.replace("-01", "-00")], PARENT.replace("-01", "-00")),
        ([f"cc{PARENT[2:]}-what-is-to-come"], PARENT),  # a later version of the standard
        ([f"{PARENT}-more"], None),
        ([f"ff{PARENT[2:]}"], None),
        ([PARENT.upper()], None),
        ([PARENT.replace(TRACE, "0" * 32)], None),
        ([PARENT.replace(SPAN, "0" * 16)], None),
        ([f"{PARENT}\r\nforged: 1"], None),
        ([PARENT, PARENT], None),
        ([""], None),
    ],
)
def test_a_valid_context_is_read_and_no_other(parents, expected):
    headers = [(b"traceparent", parent.encode()) for parent in parents]
    assert read(headers) == (expected and (("traceparent", expected),))


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["a=1,b=2"], "a=1,b=2"),
        (["a=1", "b=2"], "a=1,b=2"),
        (["a=1\nforged: 1"], None),
        (["a" * 513], None),
    ],
)
def test_its_state_comes_along(states, expected):
    headers = [(b"traceparent", PARENT.encode()), *((b"tracestate", s.encode()) for s in states)]
    metadata = dict(read(headers) or ())
    assert (metadata["traceparent"], metadata.get("tracestate")) == (PARENT, expected)


@pytest.fixture(scope="module")
def untraced(tmp_path_factory):
    with every_api(tmp_path_factory.mktemp("untraced"), SECRET) as served_and_port:
        yield served_and_port


def _asked(served, port, api: str, headers: dict[str, str]) -> dict[str, str]:
    """Ask over this API; what Triton saw of the trace."""
    served.llm.metadata.clear()
    headers = {"authorization": f"Bearer {served.key}", **headers}
    posts = {
        "v2": ("/v2/models/p/infer", V2_BODY),
        "task": ("/v1/embed", {"text": SECRET}),
        "embeddings": ("/v1/embeddings", {"model": "embed", "input": [SECRET, "x" * 9]}),
        "chat": ("/v1/chat/completions", CHAT),
        "stream": ("/v1/chat/completions", {**CHAT, "stream": True}),
    }
    if api in posts:
        path, body = posts[api]
        response = httpx.post(served.url + path, json=body, headers=headers, timeout=60)
        assert response.status_code == 200, response.text
    elif api == "grpc":
        InferenceServerClient(f"127.0.0.1:{port}").infer("p", infer_input(), headers=headers)
    else:
        asyncio.run(_talk(port, headers))
    return {
        name: value
        for metadata in served.llm.metadata
        for name, value in metadata.items()
        if name in ("traceparent", "tracestate")
    }


async def _talk(port: int, headers: dict[str, str]) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([llm_message(SECRET)]), metadata=tuple(headers.items()))
        async for _ in call:
            pass


APIS = ("v2", "task", "embeddings", "chat", "stream", "grpc", "grpc stream")


@pytest.mark.parametrize("api", APIS)
def test_the_context_reaches_triton_over_every_api(untraced, api):
    served, port = untraced
    headers = {"traceparent": PARENT, "tracestate": "vendor=1"}
    assert _asked(served, port, api, headers) == headers
    assert _asked(served, port, api, {}) == {}
    assert _asked(served, port, api, {"traceparent": "nonsense"}) == {}


def test_it_is_a_header_of_the_http_upstream():
    request = V2Request("m", "", "", [], {}, {})
    token = upstream_metadata.set((("traceparent", PARENT), ("tracestate", "a=1")))
    try:
        head = http_upstream.encode(request).partition(b"\r\n\r\n")[0]
    finally:
        upstream_metadata.reset(token)
    assert f"\r\ntraceparent: {PARENT}\r\ntracestate: a=1\r\n".encode() in head + b"\r\n"
    assert b"traceparent" not in http_upstream.encode(request)


# --- spans, and a collector on loopback -----------------------------------------------------------


class Collector:
    """What was exported, over OTLP/HTTP."""

    def __init__(self) -> None:
        self.spans: list = []
        self.services: set[str] = set()
        self.raw = b""

    def take(self, body: bytes) -> None:
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            self.services.add(names["service.name"])
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def named(self, name: str) -> list:
        return [span for span in self.spans if span.name == name]


@contextlib.contextmanager
def collecting() -> Iterator[tuple[str, Collector]]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", collector
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A gateway that traces everything whose caller has not decided against it."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    folder = tmp_path_factory.mktemp("traced")
    with collecting() as (endpoint, collector):
        settings = {"otlp_endpoint": endpoint, "trace_ratio": 1.0}
        with every_api(folder, SECRET, **settings) as (served, port):
            yield served, port, collector
    patch.undo()


def _attributes(span) -> dict:
    return {
        pair.key: getattr(pair.value, str(pair.value.WhichOneof("value")))
        for pair in span.attributes
    }


NAMES = {
    "v2": "POST /v2/models/{model}/infer",
    "task": "POST /v1/{endpoint}",
    "embeddings": "POST /v1/embeddings",
    "chat": "POST /v1/chat/completions",
    "stream": "POST /v1/chat/completions",
    "grpc": "inference.GRPCInferenceService/ModelInfer",
    "grpc stream": "inference.GRPCInferenceService/ModelStreamInfer",
}


@pytest.mark.parametrize("api", APIS)
def test_a_request_is_a_span_below_its_callers_and_above_tritons(traced, api):
    served, port, collector = traced
    trace = f"{APIS.index(api) + 1:032x}"
    seen = _asked(served, port, api, {"traceparent": f"00-{trace}-{SPAN}-01", "tracestate": "v=1"})

    def ours() -> list:
        return [span for span in collector.spans if span.trace_id.hex() == trace]

    wait_for(lambda: len(ours()) == 2)
    upstream, server = sorted(ours(), key=lambda span: span.kind, reverse=True)
    assert (server.name, upstream.name) == (NAMES[api], "triton")
    assert server.parent_span_id.hex() == SPAN
    assert upstream.parent_span_id == server.span_id
    assert seen["traceparent"] == f"00-{trace}-{upstream.span_id.hex()}-01"
    assert seen["tracestate"] == "v=1"
    assert server.start_time_unix_nano <= upstream.start_time_unix_nano
    assert upstream.end_time_unix_nano <= server.end_time_unix_nano
    attributes = _attributes(server)
    assert attributes["tidegate.model"] in ("p", "embed", "llm")
    if api in ("chat", "stream"):
        assert attributes["gen_ai.operation.name"] == "chat"
        assert attributes["gen_ai.usage.output_tokens"] == 3
    where = _attributes(upstream)
    assert (where["server.address"], where["server.port"]) == ("127.0.0.1", served.llm.port)
    assert collector.services == {"tidegate"}
    assert SECRET.encode() not in collector.raw and served.key.encode() not in collector.raw


def test_what_is_no_tracestate_is_not_logged(traced, caplog):
    """The SDK would log it as the caller wrote it."""
    served, _, _ = traced
    assert not TraceState.from_header([f"{SECRET} forged line"])
    headers = {"authorization": f"Bearer {served.key}", "traceparent": PARENT}
    headers["tracestate"] = f"{SECRET} forged line"
    answer = httpx.post(f"{served.url}/v2/models/p/infer", json=V2_BODY, headers=headers)
    assert answer.status_code == 200
    assert SECRET not in caplog.text


def test_a_failure_is_a_span_with_an_error(traced):
    served, _, collector = traced
    trace = "e" * 32

    async def fails(request):
        raise RuntimeError

    headers = {"authorization": f"Bearer {served.key}", "traceparent": f"00-{trace}-{SPAN}-01"}
    before, served.llm.answer = served.llm.answer, fails
    try:
        response = httpx.post(f"{served.url}/v2/models/p/infer", json=V2_BODY, headers=headers)
    finally:
        served.llm.answer = before
    assert response.status_code == 502

    def found() -> list:
        return [span for span in collector.named(NAMES["v2"]) if span.trace_id.hex() == trace]

    wait_for(lambda: bool(found()))
    (span,) = found()
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert _attributes(span)["http.response.status_code"] == 502


def _is_sampled(seen: dict[str, str]) -> bool:
    return bool(int(seen["traceparent"][-2:], 16) & 1)


def test_whoever_calls_decides_what_is_traced(traced):
    served, port, collector = traced
    unsampled = "d" * 32
    seen = _asked(served, port, "v2", {"traceparent": f"00-{unsampled}-{SPAN}-00"})
    assert seen["traceparent"].startswith(f"00-{unsampled}-") and not _is_sampled(seen)
    assert _is_sampled(_asked(served, port, "v2", {}))  # a trace of our own
    last = "c" * 32
    _asked(served, port, "v2", {"traceparent": f"00-{last}-{SPAN}-01"})
    wait_for(lambda: any(span.trace_id.hex() == last for span in collector.spans))
    assert not [span for span in collector.spans if span.trace_id.hex() == unsampled]


def test_a_collector_that_is_gone_holds_up_nothing(tmp_path):
    settings = {"otlp_endpoint": "http://127.0.0.1:9/v1/traces", "trace_ratio": 0.0}
    with every_api(tmp_path, SECRET, **settings) as (served, port):
        for _ in range(20):
            assert _is_sampled(_asked(served, port, "v2", {"traceparent": PARENT}))
        assert not _is_sampled(_asked(served, port, "v2", {}))  # by the ratio


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TIDEGATE_OTLP_ENDPOINT", "127.0.0.1:4318", "must be a URL"),
        ("TIDEGATE_TRACE_RATIO", "1.5", "from 0 to 1"),
    ],
)
def test_a_wrong_setting_stops_the_start(name, value, message):
    with pytest.raises(SettingsError, match=message):
        Settings.read({name: value})


def test_without_the_sdk_the_setting_says_what_to_install(monkeypatch):
    monkeypatch.setattr("gateway.settings.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"\[otel\]"):
        Settings.read({"TIDEGATE_OTLP_ENDPOINT": "http://127.0.0.1:4318/v1/traces"})
