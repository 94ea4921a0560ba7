"""Streams of a language model under load: read as clients read them, and what they come to."""

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol
from urllib.parse import urlsplit

from loadtests.bench.errors import BenchError
from loadtests.bench.passes import Ratio
from loadtests.bench.report import by_process
from loadtests.own_stack.cpu import ProcessTree, used_between
from modelspec import measuring

IDLE_S = 60.0  # the longest that a stream may be silent
SYSTEM = "You answer in plain sentences."


@dataclass(frozen=True)
class Stream:
    """When it was asked for, when each of its pieces came (seconds, monotonic), and its tokens."""

    asked_s: float
    pieces_s: Sequence[float]
    tokens: int


class Source(Protocol):
    """Something that generates. Raises BenchError unless it generates ``tokens`` for each."""

    @property
    def processes(self) -> ProcessTree: ...

    def generate(self, prompts: Sequence[str], tokens: int) -> list[Stream]:
        """The streams of all prompts, together."""
        ...


@dataclass(frozen=True)
class StreamPass:
    """One pass. ``cpu_us``: CPU microseconds a token, by the name of the process."""

    tokens_per_s: float
    first_ms: Sequence[float]  # until each stream's first piece
    gaps_ms: Sequence[float]  # between its pieces
    cpu_us: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, streams: Sequence[Stream], busy_s: float, cpu_s: Mapping[str, float]
    ) -> "StreamPass":
        tokens = sum(stream.tokens for stream in streams)
        pieces = [stream.pieces_s for stream in streams]
        return cls(
            tokens / busy_s,
            [(stream.pieces_s[0] - stream.asked_s) * 1e3 for stream in streams],
            [(b - a) * 1e3 for times in pieces for a, b in itertools.pairwise(times)],
            {name: seconds / tokens * 1e6 for name, seconds in cpu_s.items()},
        )


@dataclass(frozen=True)
class StreamRow:
    """``throughput`` is relative to the reference's; times are of all passes together."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        *("what", "streams", "tokens/s", "ratio", "band", "first p50 ms", "first p99 ms"),
        *("gap p50 ms", "gap p99 ms", "CPU us a token", "of which"),
    )

    name: str
    setting: str
    tokens_per_s: float
    throughput: Ratio
    first_p50_ms: float
    first_p99_ms: float
    gap_p50_ms: float
    gap_p99_ms: float
    cpu_us: Mapping[str, float]

    @classmethod
    def of(
        cls, name: str, setting: str, passes: Sequence[StreamPass], throughput: Ratio
    ) -> "StreamRow":
        first = [time_ms for one in passes for time_ms in one.first_ms]
        gaps = [time_ms for one in passes for time_ms in one.gaps_ms]
        names = dict.fromkeys(name for one in passes for name in one.cpu_us)
        return cls(
            name,
            setting,
            statistics.median(one.tokens_per_s for one in passes),
            throughput,
            percentile(first, 0.5),
            percentile(first, 0.99),
            percentile(gaps, 0.5),
            percentile(gaps, 0.99),
            {of: statistics.median(one.cpu_us.get(of, 0.0) for one in passes) for of in names},
        )

    def cells(self) -> list[str]:
        times = (self.first_p50_ms, self.first_p99_ms, self.gap_p50_ms, self.gap_p99_ms)
        return [
            self.name,
            self.setting,
            f"{self.tokens_per_s:,.0f}",
            f"{self.throughput.median:.2f}",
            f"{self.throughput.low:.2f}-{self.throughput.high:.2f}",
            *(f"{time_ms:.1f}" for time_ms in times),
            f"{sum(self.cpu_us.values()):,.0f}",
            by_process(self.cpu_us),
        ]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def stream_pass(
    source: Source, prompts: Callable[[], Sequence[str]], tokens: int, groups: int
) -> Callable[[], StreamPass]:
    """A pass: ``groups`` times the streams of fresh prompts together, one group after another."""

    def measured() -> StreamPass:
        before = source.processes.cpu_s()
        streams: list[Stream] = []
        busy_s = 0.0
        for _ in range(groups):
            began = time.monotonic()
            streams += source.generate(prompts(), tokens)
            busy_s += time.monotonic() - began
        return StreamPass.of(streams, busy_s, used_between(before, source.processes.cpu_s()))

    return measured


def speed(passes: Sequence[StreamPass], reference: Sequence[StreamPass]) -> Ratio:
    """Tokens a second relative to the reference's."""
    own, other = ([one.tokens_per_s for one in measured] for measured in (passes, reference))
    return Ratio.of(measuring.ratios(own, other))


def rendered(prompt: str) -> str:
    """The conversation of ``messages`` in ChatML."""
    turns = "".join(
        f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages(prompt)
    )
    return f"{turns}<|im_start|>assistant\n"


def messages(prompt: str) -> list[dict[str, str]]:
    # With a system message of our own, or the model's template adds one.
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]


@dataclass(frozen=True)
class OpenAiSource:
    """``/v1/chat/completions`` at ``url``, as server-sent events."""

    url: str
    headers: Mapping[str, str]
    model: str
    processes: ProcessTree

    def generate(self, prompts: Sequence[str], tokens: int) -> list[Stream]:
        return asyncio.run(_together([self._stream(prompt, tokens) for prompt in prompts]))

    async def _stream(self, prompt: str, tokens: int) -> Stream:
        body = {
            "model": self.model,
            "messages": messages(prompt),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        asked_s, pieces_s, made = time.monotonic(), [], 0
        async with events(self.url, self.headers, body) as documents:
            async for document in documents:
                choices = document.get("choices")
                if choices and choices[0]["delta"].get("content"):
                    pieces_s.append(time.monotonic())
                made = (document.get("usage") or {}).get("completion_tokens", made)
        return checked(Stream(asked_s, pieces_s, made), tokens, self.url)


@asynccontextmanager
async def events(
    url: str, headers: Mapping[str, str], body: Mapping[str, Any]
) -> AsyncIterator[AsyncIterator[Any]]:
    """The JSON of each event of a response; BenchError for any but 200."""
    reader, writer = await opened(url, headers, body)
    try:
        yield _documents(reader)
    finally:
        writer.close()


async def opened(
    url: str, headers: Mapping[str, str], body: Mapping[str, Any]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which the request is sent and the response's head is read."""
    parts, content = urlsplit(url), json.dumps(body).encode()
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**20)
    writer.write("\r\n".join([*lines, "", ""]).encode() + content)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), IDLE_S)
    if b" 200 " not in head.split(b"\r\n")[0]:
        rest = await asyncio.wait_for(reader.read(500), IDLE_S)
        writer.close()
        raise BenchError(f"{url} refused: {head[:40]!r} {rest!r}")
    return reader, writer


async def _documents(reader: asyncio.StreamReader) -> AsyncIterator[object]:
    while line := await asyncio.wait_for(reader.readline(), IDLE_S):
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            yield json.loads(line[6:])


@dataclass(frozen=True)
class TritonSource:
    """ModelStreamInfer of a model with the contract of Triton's vLLM backend; HOST:PORT."""

    address: str
    model: str
    processes: ProcessTree

    def generate(self, prompts: Sequence[str], tokens: int) -> list[Stream]:
        return asyncio.run(self._all(prompts, tokens))

    async def _all(self, prompts: Sequence[str], tokens: int) -> list[Stream]:
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            return await _together([self._stream(stub, prompt, tokens) for prompt in prompts])

    async def _stream(self, stub: Any, prompt: str, tokens: int) -> Stream:
        asked_s, pieces_s, made = time.monotonic(), [], 0
        call = stub.ModelStreamInfer(iter([_request(self.model, rendered(prompt), tokens)]))
        async for message in call:
            if message.error_message:
                raise BenchError(f"{self.model}: {message.error_message}")
            response = message.infer_response
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
                if output.name == "num_output_tokens":
                    made += int.from_bytes(raw, "little")
            if response.outputs:
                pieces_s.append(time.monotonic())
        return checked(Stream(asked_s, pieces_s, made), tokens, self.address)


def _request(model: str, prompt: str, tokens: int) -> object:
    from tritonclient.grpc import service_pb2

    sampling = json.dumps({"temperature": 0, "max_tokens": tokens, "ignore_eos": True})
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, text in (("text_input", prompt), ("sampling_parameters", sampling)):
        request.inputs.add(name=name, datatype="BYTES", shape=[1])
        data = text.encode()
        request.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
    for name in ("stream", "return_num_output_tokens"):
        request.inputs.add(name=name, datatype="BOOL", shape=[1])
        request.raw_input_contents.append(b"\1")
    return request


async def _together(streams: Sequence[Any]) -> list[Stream]:
    return list(await asyncio.gather(*streams))


def checked(stream: Stream, tokens: int, where: str) -> Stream:
    if stream.tokens != tokens or not stream.pieces_s:
        raise BenchError(f"{where} generated {stream.tokens} of {tokens} tokens")
    return stream
