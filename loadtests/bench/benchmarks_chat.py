"""A language model: many streams against one, at each layer, beside llama.cpp's server; and what a
piece of text costs the gateway."""

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.errors import BenchError
from loadtests.bench.gateway_alone import GatewayAlone, gateway_alone
from loadtests.bench.passes import Ratio
from loadtests.bench.report import Floor, Section
from loadtests.bench.settings import ENVIRONMENTS, ROOT, Effort
from loadtests.bench.stack import BenchStack, newest, running
from loadtests.bench.streams import (
    OpenAiSource,
    Source,
    Stream,
    StreamPass,
    StreamRow,
    TritonSource,
    checked,
    messages,
    opened,
    rendered,
    speed,
    stream_pass,
)
from loadtests.own_stack.cpu import ProcessTree, used_between
from loadtests.own_stack.processes import free_ports, start
from modelspec import measuring

MODEL = "chat"
TOKENS = 64  # of each stream
MANY = 8
GROUPS = {1: 2, MANY: 1}  # streams together -> how often in a pass
TRITON, GATEWAY, IN_PROCESS, PEER = (
    "Triton, gRPC",
    "gateway, SSE",
    "engine in process",
    "xllamacpp's server",
)
GAINS = {TRITON: 2.5, GATEWAY: 2.0}  # tokens/s of many streams over one's
SERVED = 0.9  # of the engine's tokens/s in process
PEER_FILE = "xllamacpp_server"
PEER_START_S = 60.0

NOTES = (
    "Each ratio is over one stream of the same source. A stream's first piece comes after its "
    "prompt of 30 to 90 tokens, which no cache holds.",
)

EVENT_STREAMS, EVENT_PIECES = 8, 1000  # a pass: as many pieces of each stream
EVENT_FLOOR = 10_000  # pieces a second of the gateway's CPU
# Of about 20 to 90 tokens; a number in front makes each a prompt that no cache holds.
_QUESTIONS = (
    "Where is my parcel?",
    "Write one sentence about the sea and one about the mountains behind it.",
    "My laptop does not start. What should I check first? It was bought in March, it was dropped "
    "once, and the light beside the charger is green.",
    "Name three fruits and say where each of them grows.",
    "A train leaves at nine and arrives at half past eleven, with two stops of five minutes each. "
    "How long does it travel, how long does it stand, and when would it arrive if it did not stop "
    "at all but left a quarter of an hour later?",
    "Why is the sky blue?",
    "Summarize: the meeting was moved to Friday because the room was taken, and nobody objected.",
    "Explain to a child what a shadow is.",
)


Passes = dict[tuple[str, int], list[StreamPass]]


def streams(effort: Effort) -> Section:
    """Each layer over the engine. All are up at once, but only one is under load at a time."""
    with ExitStack() as stack:
        served = stack.enter_context(_served(effort))
        engine = stack.enter_context(_in_process(_file(served)))
        sources = {TRITON: _triton(served), GATEWAY: _gateway(served), IN_PROCESS: engine}
        passes = _measured(sources, effort)
    gains = [
        Floor(
            f"{name}: tokens/s of {MANY} streams over one's",
            speed(passes[name, MANY], passes[name, 1]),
            required,
        )
        for name, required in GAINS.items()
    ]
    shares = [
        Floor(
            f"{TRITON} over the {IN_PROCESS}, streams: {count}",
            speed(passes[TRITON, count], passes[IN_PROCESS, count]),
            SERVED,
        )
        for count in (1, MANY)
    ]
    return Section(f"Streams of {TOKENS} tokens from {MODEL}", _rows(passes), gains + shares, NOTES)


def beside_llama_cpp(effort: Effort) -> Section:
    """The same file behind our gateway and behind llama.cpp's server."""
    with ExitStack() as stack:
        served = stack.enter_context(_served(effort))
        peer = stack.enter_context(_peer(_file(served)))
        passes = _measured({GATEWAY: _gateway(served), PEER: peer}, effort)
    parts = []
    for count in (1, MANY):
        ratio = speed(passes[GATEWAY, count], passes[PEER, count])
        parts.append(f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f}) at {count}")
    note = f"Tokens/s of our gateway over those of {PEER}: {', '.join(parts)}."
    return Section(f"{MODEL} beside llama.cpp", _rows(passes), (), [*NOTES, note])


def _measured(sources: Mapping[str, Source], effort: Effort) -> Passes:
    contenders = {
        f"{name}|{count}": stream_pass(source, _fresh(count), TOKENS, GROUPS[count])
        for name, source in sources.items()
        for count in (1, MANY)
    }
    for source in sources.values():
        source.generate([_question(0)], 8)  # warm
    measured = measuring.alternate(contenders, effort.rounds)
    return {(name, count): measured[f"{name}|{count}"] for name in sources for count in (1, MANY)}


def _rows(passes: Passes) -> list[StreamRow]:
    return [
        StreamRow.of(name, str(count), own, speed(own, passes[name, 1]))
        for (name, count), own in passes.items()
    ]


def _fresh(count: int) -> Callable[[], Sequence[str]]:
    """Prompts that were not asked before; each pass has the same questions."""
    return lambda: [_question(index) for index in range(count)]


_numbers = itertools.count(1)


def _question(index: int) -> str:
    return f"Request {next(_numbers)}. {_QUESTIONS[index % len(_QUESTIONS)]}"


@contextmanager
def _served(effort: Effort) -> Iterator[BenchStack]:
    if not any((effort.repository / MODEL).glob("[0-9]*")):  # its config is committed
        raise BenchError(f"there is no {MODEL} in {effort.repository}: tidegate convert {MODEL}")
    with running(effort.repository, [MODEL]) as stack:
        yield stack


def _file(stack: BenchStack) -> Path:
    return newest(stack.repository / MODEL) / "model.gguf"


def _triton(stack: BenchStack) -> Source:
    return TritonSource(stack.triton_grpc, MODEL, stack.processes)


def _gateway(stack: BenchStack) -> Source:
    headers = {"Authorization": f"Bearer {stack.key}"}
    return OpenAiSource(f"{stack.gateway}/v1/chat/completions", headers, MODEL, stack.processes)


@dataclass(frozen=True)
class _InProcess:
    process: "subprocess.Popen[str]"

    @property
    def processes(self) -> ProcessTree:
        return ProcessTree(self.process.pid, lambda _: IN_PROCESS)

    def generate(self, prompts: Sequence[str], tokens: int) -> list[Stream]:
        assert self.process.stdin  # noqa: S101 - a pipe
        asked = {"prompts": [rendered(prompt) for prompt in prompts], "tokens": tokens}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return [checked(Stream(*one), tokens, IN_PROCESS) for one in json.loads(self.line())]

    def line(self) -> str:
        assert self.process.stdout  # noqa: S101 - a pipe
        line = self.process.stdout.readline()
        if not line:
            raise BenchError(f"the {IN_PROCESS} ended with {self.process.wait()}")
        return line


@contextmanager
def _in_process(file: Path) -> Iterator[_InProcess]:
    module = "loadtests.bench.chat_in_process"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-m", module, str(file)], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
    ) as process:
        engine = _InProcess(process)
        engine.line()
        try:
            yield engine
        finally:
            process.kill()


@contextmanager
def _peer(file: Path) -> Iterator[OpenAiSource]:
    python = ENVIRONMENTS / PEER_FILE / "bin" / "python"
    if not python.exists():
        raise BenchError(f"xllamacpp is not installed in {python.parents[1]}: make bench-chat")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    script = Path(__file__).parent / "peers" / f"{PEER_FILE}.py"
    environment = {"BENCH_PORT": str(port), "BENCH_MODEL": str(file)}
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        server = start(PEER, [str(python), str(script)], environment, Path(folder) / "peer.log")
        try:
            server.wait_ready(f"{url}/health", PEER_START_S)
            processes = ProcessTree(server.process.pid, lambda _: "xllamacpp")
            yield OpenAiSource(f"{url}/v1/chat/completions", {}, MODEL, processes)
        finally:
            server.stop()


def events(effort: Effort) -> Section:
    """Pieces that a core of the gateway passes on, from a Triton that sends as fast as it can."""
    config = effort.repository / MODEL / "config.pbtxt"
    if not config.is_file():
        raise BenchError(f"there is no model {MODEL!r} in {effort.repository}")
    with gateway_alone("loadtests.bench.instant_chat", [str(config)], MODEL) as gateway:
        _passed_on(gateway, 100)  # warm
        passes = [_passed_on(gateway, EVENT_PIECES) for _ in range(effort.rounds)]
    per_core = Ratio.of([one.per_core for one in passes])
    wall = statistics.median(one.pieces / one.wall_s for one in passes)
    return Section(
        "Server-sent events through the gateway",
        (),
        [Floor("pieces a second of the gateway's CPU", per_core, EVENT_FLOOR)],
        [
            f"{EVENT_STREAMS} streams of {EVENT_PIECES:,} pieces; {wall:,.0f} pieces/s on the "
            f"clock, {1e6 / per_core.median:.0f} us of the gateway's CPU a piece. The fake Triton "
            "and the client use the same cores."
        ],
    )


@dataclass(frozen=True)
class _PassedOn:
    pieces: int
    wall_s: float
    cpu_s: float

    @property
    def per_core(self) -> float:
        return self.pieces / self.cpu_s


def _passed_on(gateway: GatewayAlone, pieces: int) -> _PassedOn:
    before, began = gateway.processes.cpu_s(), time.monotonic()
    counts = asyncio.run(_count_all(gateway, pieces))
    wall_s = time.monotonic() - began
    used = sum(used_between(before, gateway.processes.cpu_s()).values())
    if counts != [pieces] * EVENT_STREAMS:
        raise BenchError(f"of {pieces} pieces there arrived {counts}")
    return _PassedOn(pieces * EVENT_STREAMS, wall_s, max(used, 1e-3))


async def _count_all(gateway: GatewayAlone, pieces: int) -> list[int]:
    return list(await asyncio.gather(*(_count(gateway, pieces) for _ in range(EVENT_STREAMS))))


async def _count(gateway: GatewayAlone, pieces: int) -> int:
    """The words that arrived, whatever events they came in."""
    body = {"model": MODEL, "messages": messages("Hello"), "max_tokens": pieces, "stream": True}
    headers = {"Authorization": f"Bearer {gateway.key}"}
    reader, writer = await opened(f"{gateway.url}/v1/chat/completions", headers, body)
    count, last = 0, b""
    while data := await reader.read(2**16):
        data, count = last + data, count + (last + data).count(b" word") - last.count(b" word")
        last = data[-8:]
    writer.close()
    return count
