"""The requests that a sign-off and Locust's users send: each API of the gateway, and Triton's own
protocol.

Only processes that gevent has patched as a whole import this.
"""

import base64
import itertools
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import gevent.queue
import numpy as np
from geventhttpclient import HTTPClient
from tritonclient.grpc import InferInput, InferResult
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from loadtests.gevent_triton import TritonClient
from loadtests.photos import photos
from loadtests.preflight import CannotStart
from loadtests.signoff.cross_check import CHAT_TOKENS
from loadtests.signoff.preflight import Pipeline, pipeline_of
from loadtests.signoff.sending import Prepared, Response, Source
from loadtests.signoff.tenants import Tenant
from loadtests.signoff.trace import Recorded, Trace, text_of
from loadtests.texts import endless, real_texts

TIMEOUT_S = 35.0  # above the gateway's deadline of 30 s, so that its 504 arrives
# So many connections at most. What is due beyond that waits for one, and its wait counts in its
# latency.
MOST_OPEN = 4096
GRPC_CONNECTIONS = 8  # that unary requests share
MOST_IDLE = 32  # gRPC streams that wait for their next request: a gateway keeps 64 of a caller
FRESH_S = 10.0  # after which an idle one is not used again: a gateway keeps it for its deadline
_TIMING = re.compile(r"(\w+);dur=([0-9.]+)")
_JSON_LENGTH = "Inference-Header-Content-Length"


# Builds a request before it is due; what it returns sends it.
Sender = Callable[[], Callable[[], Response]]


@dataclass(frozen=True)
class Target:
    """What is loaded, and as whom: each of the ``tenants`` has connections of its own. The only
    one may have no name. The others are as in Client. ``first_text`` is where in the real texts
    the requests begin."""

    url: str
    grpc_address: str
    tenants: tuple[Tenant, ...]
    timeout_s: float = TIMEOUT_S
    first_text: int = 0

    def pipeline(self, name: str) -> Pipeline:
        """What the gateway says of a pipeline; CannotStart if a tenant may not use it."""
        pipelines = [pipeline_of(self.url, name, own.key, own.whose) for own in self.tenants]
        return pipelines[0]

    def texts(self, count: int) -> list[str]:
        """So many real texts, as the requests have them."""
        return list(itertools.islice(Texts(self.first_text), count))

    def rows(self, pipeline: Pipeline, count: int) -> str:
        """The tensors of so many requests, as perf_analyzer's ``--input-data`` has them."""
        texts = Texts()
        rows = [
            {
                name: {
                    "content": [
                        value.decode() if isinstance(value, bytes) else value
                        for value in array.ravel().tolist()
                    ],
                    "shape": list(array.shape[1:]),
                }
                for name, array in _tensors(pipeline, texts).items()
            }
            for _ in range(count)
        ]
        return json.dumps({"data": rows})

    def source(self, pipeline: Pipeline, apis: Mapping[str, float]) -> "Spread | Mix":
        """The requests of all tenants. One of each tenant and API has been sent: CannotStart if it
        was refused."""
        mixes: dict[Tenant, Mix] = {}
        for own in self.tenants:
            client = Client(self.url, own.key, self.grpc_address, self.timeout_s)
            mixes[own] = client.senders(pipeline, apis, self.first_text)
            mixes[own].try_each(own.whose)
        return Spread(mixes, self.first_text) if self.tenants[0].name else mixes[self.tenants[0]]

    def replay(self, trace: Trace, sources: "Mapping[str, Spread | Mix]") -> Source:
        """The requests of a trace, in its order, from the ``source`` of each pipeline. CannotStart
        names the line of a tenant that has no key. Those without a tenant are spread over all."""
        names = {own.name for own in self.tenants}
        for recorded in trace.requests:
            if recorded.tenant and recorded.tenant not in names:
                raise CannotStart(
                    f"{trace.name}, line {recorded.line}: tenant {recorded.tenant!r} has no key: "
                    "name it in the file of --keys"
                )
        return Replay(trace, sources)


@dataclass(frozen=True)
class Client:
    """Sends to one target as one caller: ``key`` may be empty. ``grpc_address`` is HOST:PORT of the
    gateway's gRPC port. What takes longer than ``timeout_s`` has failed."""

    url: str
    key: str
    grpc_address: str = ""
    timeout_s: float = TIMEOUT_S

    def senders(self, pipeline: Pipeline, apis: Mapping[str, float], first_text: int = 0) -> "Mix":
        """What sends a pipeline's requests; CannotStart for an API that it does not offer."""
        weights = dict(apis) or {pipeline.default_api: 1.0}
        texts = Texts(first_text)
        senders = {api: self._sender(api, pipeline, texts) for api in weights}
        return Mix(senders, weights, texts, first_text)

    def _http(self) -> HTTPClient:
        parts = urlsplit(self.url)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return HTTPClient(
            parts.hostname or "",
            parts.port or (443 if parts.scheme == "https" else 80),
            ssl=parts.scheme == "https",
            concurrency=MOST_OPEN,
            connection_timeout=self.timeout_s,
            network_timeout=self.timeout_s,
            headers={**headers, "Content-Type": "application/json"},
        )

    def _sender(self, api: str, pipeline: Pipeline, texts: "Texts") -> Sender:
        if api == "grpc-stream":
            return self._grpc_stream(pipeline, texts)
        if api in ("grpc", "v2", "v2-binary"):
            pipeline.require_tensors_can_be_made_up()
        if api == "grpc":
            return self._grpc(pipeline, texts)
        http = self._http()
        if api == "chat":
            return _chat(http, pipeline, texts)
        if api in ("v2", "v2-binary"):
            return _v2(http, pipeline, texts, is_binary=api == "v2-binary")
        if api == "openai":
            pipeline.require_route("/v1/embeddings")

            def body() -> dict[str, Any]:
                return {"model": pipeline.name, "input": next(texts)}

            return _unary(http, "/v1/embeddings", body)
        pipeline.require_route(f"/v1/{pipeline.name}")
        images = _images(pipeline)
        return _unary(http, f"/v1/{pipeline.name}", lambda: _example(pipeline, texts, images))

    def _grpc_client(self) -> TritonClient:
        if not self.grpc_address:
            raise CannotStart("gRPC needs the address of the gateway's port: pass --grpc HOST:PORT")
        return TritonClient.take(self.grpc_address)

    @property
    def _metadata(self) -> dict[str, str] | None:
        return {"authorization": f"Bearer {self.key}"} if self.key else None

    def _grpc(self, pipeline: Pipeline, texts: Iterator[str]) -> Sender:
        # Several connections, as several callers have: with one, one of a gateway's workers would
        # get everything.
        clients = itertools.cycle([self._grpc_client() for _ in range(GRPC_CONNECTIONS)])
        headers = self._metadata

        def prepare() -> Callable[[], Response]:
            tensors, client = _infer_inputs(_tensors(pipeline, texts)), next(clients)

            def send() -> Response:
                try:
                    client.infer(
                        pipeline.name, tensors, headers=headers, client_timeout=self.timeout_s
                    )
                except InferenceServerException as error:
                    return Response(f"gRPC {error.status() or 'error'}", {})
                return Response("", {})

            return send

        return prepare

    def _grpc_stream(self, pipeline: Pipeline, texts: "Texts") -> Sender:
        """Requests of ModelStreamInfer; each stream carries one at a time, as a client's would."""
        is_language_model = "text_input" in pipeline.inputs
        if not is_language_model:
            pipeline.require_tensors_can_be_made_up()
        idle: list[_GrpcStream] = []

        def prepare() -> Callable[[], Response]:
            make = _language_model_tensors if is_language_model else _tensors
            tensors = _infer_inputs(make(pipeline, texts))
            while idle and not idle[-1].is_fresh:
                idle.pop().close()
            # Opened before it is due: its greeting is not the request's time.
            stream = idle.pop() if idle else _GrpcStream(self._grpc_client(), self._metadata)

            def send() -> Response:
                response = stream.infer(pipeline.name, tensors, self.timeout_s)
                if response.fault or len(idle) >= MOST_IDLE:
                    stream.close()
                else:
                    idle.append(stream)
                # Of others the first response says nothing that the last one does not say.
                return response if is_language_model else Response("", {})

            return send

        return prepare


class _GrpcStream:
    """A stream of Triton's gRPC API by the stock client, which carries one request at a time."""

    def __init__(self, client: TritonClient, metadata: Mapping[str, str] | None) -> None:
        self._client = client
        self._used_at = time.monotonic()
        self._received: gevent.queue.Queue[InferResult | InferenceServerException] = (
            gevent.queue.Queue()
        )
        client.start_stream(
            lambda result, error: self._received.put(error or result), headers=metadata
        )

    @property
    def is_fresh(self) -> bool:
        """A gateway ends a stream on which nothing has moved for long, and says so on it."""
        return not self._received.qsize() and time.monotonic() - self._used_at < FRESH_S

    def infer(self, model: str, tensors: list[InferInput], timeout_s: float) -> Response:
        """When its first response came, and the mean time between two; a response without text is
        no token."""
        began = time.perf_counter()
        times: list[float] = []
        try:
            self._client.async_stream_infer(model, tensors, enable_empty_final_response=True)
            while True:
                remaining_s = timeout_s + began - time.perf_counter()
                received = self._received.get(timeout=max(remaining_s, 0.0))
                if isinstance(received, InferenceServerException):
                    return Response(f"gRPC {received.status() or received.message()[:80]}", _NEVER)
                response = received.get_response()
                if response.outputs and _has_content(received.as_numpy(response.outputs[0].name)):
                    times.append(time.perf_counter() - began)
                if response.parameters["triton_final_response"].bool_param:
                    break
        except gevent.queue.Empty:
            return Response("gRPC timed out", _NEVER)
        except InferenceServerException as error:  # the stream has ended meanwhile
            return Response(f"gRPC {error.message()[:80]}", _NEVER)
        finally:
            self._used_at = time.monotonic()
        return _streamed(times)

    def close(self) -> None:
        self._client.stop_stream(cancel_requests=True)
        self._client.give_back()


class Texts(Iterator[str]):
    """Real texts, or for the next request the one of a trace."""

    def __init__(self, first: int = 0) -> None:
        self._real = itertools.islice(endless(real_texts()), first, None)
        self._said = ""
        self.max_tokens = CHAT_TOKENS

    def __next__(self) -> str:
        return self._said or next(self._real)

    def say(self, recorded: Recorded) -> None:
        """From now on the text of a recorded request, with so many tokens as its answer."""
        self._said = ""
        self._said = recorded.text or text_of(recorded.characters, self)
        self.max_tokens = recorded.max_tokens or CHAT_TOKENS


class Mix:
    """Requests of several APIs in their weights; the same order in each run."""

    def __init__(
        self,
        senders: Mapping[str, Sender],
        weights: Mapping[str, float],
        texts: "Texts",
        seed: int = 0,
    ) -> None:
        self.texts = texts
        self._senders = [(api, senders[api]) for api in weights]
        self._weights = list(weights.values())
        self._random = random.Random(seed)  # noqa: S311 - nothing secret

    def prepare(self) -> Prepared:
        ((api, sender),) = self._random.choices(self._senders, self._weights)
        return Prepared(sender(), {"api": api})

    def prepare_recorded(self, recorded: Recorded) -> Prepared:
        self.texts.say(recorded)
        return self.prepare()

    def try_each(self, whose: str) -> None:
        """One request of each API, before any load, with ``whose`` key. CannotStart if it is
        refused: with a status below 500, or with none."""
        for api, sender in self._senders:
            fault = sender()().fault
            if fault and not fault.startswith(("HTTP 5", "HTTP 429")):
                raise CannotStart(f"a request over the API {api!r} with {whose} failed: {fault}")


class Spread:
    """Requests of several tenants in their weights; the same order in each run."""

    def __init__(self, sources: Mapping[Tenant, Mix], seed: int = 0) -> None:
        self._sources = list(sources.items())
        self._weights = [tenant.weight for tenant in sources]
        self._random = random.Random(seed + 1)  # noqa: S311 - nothing secret

    def prepare(self) -> Prepared:
        ((tenant, source),) = self._random.choices(self._sources, self._weights)
        return _labelled(source.prepare(), tenant=tenant.name)

    def prepare_recorded(self, recorded: Recorded) -> Prepared:
        """As one tenant's request if it is recorded whose it was."""
        named = [pair for pair in self._sources if pair[0].name == recorded.tenant]
        ((tenant, source),) = named or self._random.choices(self._sources, self._weights)
        return _labelled(source.prepare_recorded(recorded), tenant=tenant.name)


class Replay:
    """The requests of a trace, each for its pipeline; from the first one again after the last."""

    def __init__(self, trace: Trace, sources: Mapping[str, Spread | Mix]) -> None:
        self._requests = itertools.cycle(trace.requests)
        self._sources = sources

    def prepare(self) -> Prepared:
        recorded = next(self._requests)
        prepared = self._sources[recorded.pipeline].prepare_recorded(recorded)
        return _labelled(prepared, pipeline=recorded.pipeline)


def _labelled(prepared: Prepared, **labels: str) -> Prepared:
    return Prepared(prepared.send, {**prepared.labels, **labels})


def _unary(http: HTTPClient, path: str, body: Callable[[], Mapping[str, Any]]) -> Sender:
    def prepare() -> Callable[[], Response]:
        content = json.dumps(body()).encode()
        return lambda: _post(http, path, content)

    return prepare


def _post(
    http: HTTPClient, path: str, content: bytes, headers: Mapping[str, str] | None = None
) -> Response:
    try:
        response = http.post(path, body=content, headers=headers)
        response.read()
    except Exception as error:  # of the network, and of the client's parser
        return Response(type(error).__name__, {})
    fault = "" if response.status_code == 200 else f"HTTP {response.status_code}"
    return Response(fault, _server_timing(response))


def _server_timing(response: Any) -> dict[str, float]:
    """Seconds, by the names that the server gives."""
    timings = _TIMING.findall(response.get("server-timing") or "")
    return {name: float(ms) / 1000 for name, ms in timings}


def _v2(http: HTTPClient, pipeline: Pipeline, texts: Iterator[str], *, is_binary: bool) -> Sender:
    path = f"/v2/models/{pipeline.name}/infer"

    def prepare() -> Callable[[], Response]:
        inputs, data = [], b""
        for name, array in _tensors(pipeline, texts).items():
            tensor = {
                "name": name,
                "datatype": np_to_triton_dtype(array.dtype),
                "shape": list(array.shape),
            }
            if is_binary:
                encoded = _encoded(array)
                data += encoded
                tensor["parameters"] = {"binary_data_size": len(encoded)}
            else:
                tensor["data"] = [
                    value.decode() if isinstance(value, bytes) else value
                    for value in array.ravel().tolist()
                ]
            inputs.append(tensor)
        head = json.dumps(
            {"inputs": inputs, "parameters": {"binary_data_output": True}}
            if is_binary
            else {"inputs": inputs}
        ).encode()
        headers = {_JSON_LENGTH: str(len(head))} if is_binary else None
        return lambda: _post(http, path, head + data, headers)

    return prepare


def _encoded(array: "np.ndarray[Any, Any]") -> bytes:
    """As V2's binary extension has it: strings with their length in front."""
    if array.dtype != object:
        return array.tobytes()
    return b"".join(len(value).to_bytes(4, "little") + value for value in array.ravel())


def _chat(http: HTTPClient, pipeline: Pipeline, texts: Texts) -> Sender:
    pipeline.require_route("/v1/chat/completions")

    def prepare() -> Callable[[], Response]:
        content = json.dumps(
            {
                "model": pipeline.name,
                "messages": [{"role": "user", "content": next(texts)}],
                "max_tokens": texts.max_tokens,
                "stream": True,
            }
        ).encode()
        return lambda: _stream(http, content)

    return prepare


def _stream(http: HTTPClient, content: bytes) -> Response:
    """A streamed chat completion: when its first token came, and the mean time between two."""
    began = time.perf_counter()
    times: list[float] = []
    try:
        response = http.post("/v1/chat/completions", body=content)
        if response.status_code != 200:
            response.read()
            return Response(f"HTTP {response.status_code}", _NEVER)
        while line := response.readline(b"\n"):
            data = line.strip().removeprefix(b"data: ")
            if data == b"[DONE]":
                break
            if not data.startswith(b"{"):  # an empty line, or a comment that keeps it alive
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                return Response("an error within the stream", _NEVER)
            if any(_has_token(choice) for choice in chunk.get("choices", ())):
                times.append(time.perf_counter() - began)
        else:
            return Response("the stream ended early", _NEVER)
        response.read()  # the end of the message: then the connection serves the next request
    except Exception as error:  # of the network, and of the client's parser
        return Response(type(error).__name__, _NEVER)
    return _streamed(times)


def _streamed(times: list[float]) -> Response:
    """``times``: seconds from the request to each of its tokens."""
    if not times:
        return Response("the stream had no token", _NEVER)
    gap_s = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else math.nan
    return Response("", {"first_token": times[0], "gap": gap_s})


# A stream that failed misses each of its limits.
_NEVER = {"first_token": math.inf, "gap": math.inf}


def _has_content(output: "np.ndarray[Any, Any]") -> bool:
    """Not the empty text at the end of a stream; a tensor of zeros is content."""
    return bool(output.any()) if output.dtype == object else output.size > 0


def _has_token(choice: Mapping[str, Any]) -> bool:
    """Not the first chunk, which has the role and an empty content."""
    delta = choice.get("delta", {})
    return any(delta.get(key) for key in ("content", "reasoning_content", "tool_calls"))


def _images(pipeline: Pipeline) -> Iterator[Mapping[str, str]]:
    """Real photos, as a request's JSON has them; none if the pipeline takes no image."""
    if "b64" not in _mapping(pipeline.example.get("image")):
        return iter(())
    encoded = [{"b64": base64.b64encode(photo).decode()} for photo in photos()]
    return itertools.cycle(encoded)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _example(
    pipeline: Pipeline, texts: Iterator[str], images: Iterator[Mapping[str, str]]
) -> Mapping[str, Any]:
    """The pipeline's example, with a real text or photo where it takes one."""
    example = dict(pipeline.example)
    if isinstance(example.get("text"), str):
        example["text"] = next(texts)
    image = next(images, None)
    return {**example, "image": image} if image else example


def _infer_inputs(tensors: Mapping[str, "np.ndarray[Any, Any]"]) -> list[InferInput]:
    inputs = []
    for name, array in tensors.items():
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array))
    return inputs


def _language_model_tensors(pipeline: Pipeline, texts: Texts) -> dict[str, "np.ndarray[Any, Any]"]:
    """A streamed request by the contract of Triton's vLLM backend. At least one token: to a text
    without a chat template a model may have nothing to add, and that is no failure."""
    text = next(texts)
    sampling = json.dumps({"max_tokens": texts.max_tokens, "min_tokens": 1})
    return {
        "text_input": np.array([text.encode()], dtype=object),
        "stream": np.array([True]),
        "sampling_parameters": np.array([sampling.encode()], dtype=object),
    }


def _tensors(pipeline: Pipeline, texts: Iterator[str]) -> dict[str, "np.ndarray[Any, Any]"]:
    """One row of each input: real texts, or numbers from 0 to 1."""
    generator = np.random.default_rng(next(_SEEDS))
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name, (datatype, shape) in pipeline.inputs.items():
        if datatype == "BYTES":
            values = np.array([next(texts).encode() for _ in range(math.prod(shape))], dtype=object)
            tensors[name] = values.reshape(shape)
        else:
            tensors[name] = generator.random(shape).astype(triton_to_np_dtype(datatype))
    return tensors


_SEEDS = itertools.count()
