"""Other ways to serve the same model file with the same tokeniser, under the same load."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.errors import BenchError
from loadtests.bench.passes import Pass, Rounds, alternate, wrk_pass
from loadtests.bench.payloads import JSON, chunks, embedding_task, embedding_v2
from loadtests.bench.report import Floor, Row, Section, rows
from loadtests.bench.settings import ENVIRONMENTS, Effort
from loadtests.bench.stack import BenchStack
from loadtests.bench.wrk import Figures, LoadTarget, run
from loadtests.own_stack.cpu import ProcessTree
from loadtests.own_stack.processes import free_ports, start

FOLDER = Path(__file__).with_name("peers")
START_S = 120.0
TEXTS_PER_REQUEST = (1, 8)
WARM_CONNECTIONS, WARM_S = 8, 3
MANY_TEXTS_S = 2  # times as long a pass: 32 requests of 8 texts take a second together
OURS, DIRECT = "Tidegate, task route", "Tidegate, Triton direct"
SAME_GRAPH = "FastAPI, our graph"


@dataclass(frozen=True)
class Peer:
    """``file`` in ``peers/`` runs in the Python of its own environment. Each takes ``{"texts":
    [...]}``; ``floors`` are connections -> the share of its throughput that our task route reaches,
    one text a request. One that ``polls`` takes processors while nobody asks it anything, and is
    paused while others are measured."""

    name: str
    file: str
    path: str
    health: str
    floors: dict[int, float]
    polls: bool = False

    @property
    def python(self) -> Path:
        return ENVIRONMENTS / self.file / "bin" / "python"


FASTAPI = Peer(
    "FastAPI + ONNX Runtime", "fastapi_onnx", "/embed", "/docs", {1: 0.7, 8: 0.95, 32: 1.1}
)
PEERS = (
    FASTAPI,
    # 0.3 of a core without a request (0.2.19).
    Peer("LitServe", "litserve_app", "/predict", "/health", {32: 1.0}, polls=True),
    Peer("BentoML", "bentoml_app", "/embed", "/readyz", {8: 1.0, 32: 1.0}),
)


@dataclass(frozen=True)
class Server:
    """A peer that runs; ``targets`` are by texts per request. Take passes while it is ``awake``."""

    peer: Peer
    name: str
    targets: dict[int, LoadTarget]
    awake: Callable[[], AbstractContextManager[None]] = nullcontext


def same_model(stack: BenchStack, effort: Effort) -> Section:
    """All servers run at once, but only one of them is under load at a time, and those that take
    processors all the same are paused meanwhile."""
    with ExitStack() as open_servers:
        servers = [
            open_servers.enter_context(_serving(peer, peer.name, stack, stack.model_file))
            for peer in PEERS
        ]
        table, floors = _measured(stack, servers, effort)
    note = "Each ratio is over our own task route, key check, policy and audit on."
    return Section("Against peers: real texts in, vectors out as JSON", table, floors, [note])


def optimized(stack: BenchStack, effort: Effort) -> Section:
    """What our ``optimize`` published, against a peer with the same graph and one in FP32."""
    if stack.model_file == stack.first_model_file:
        note = "Not measured: `tidegate optimize --publish` kept the graph that was there."
        return Section("After optimize", (), notes=[note])
    with ExitStack() as open_servers:
        files = {FASTAPI.name: stack.first_model_file, SAME_GRAPH: stack.model_file}
        servers = [
            open_servers.enter_context(_serving(FASTAPI, name, stack, file))
            for name, file in files.items()
        ]
        table, _ = _measured(stack, servers, effort)
    note = f"{stack.model_file.parent.name} is the version that `tidegate optimize` published."
    return Section("After optimize: against FastAPI in FP32, and with our graph", table, (), [note])


def _measured(
    stack: BenchStack, servers: list[Server], effort: Effort
) -> tuple[list[Row], list[Floor]]:
    table: list[Row] = []
    floors: list[Floor] = []
    for n_texts in TEXTS_PER_REQUEST:
        ours = embedding_task(OURS, stack, n_texts), embedding_v2(DIRECT, stack, "triton", n_texts)
        targets = [
            *((target, nullcontext) for target in ours),
            *((server.targets[n_texts], server.awake) for server in servers),
        ]
        for target, awake in targets:
            with awake():
                run(target, WARM_CONNECTIONS, WARM_S)
        for connections in effort.connections:
            seconds = effort.seconds if n_texts == 1 else MANY_TEXTS_S * effort.seconds
            passes = {
                target.name: _awake_pass(awake, wrk_pass(target, connections, seconds))
                for target, awake in targets
            }
            rounds = alternate(passes, effort.rounds)
            setting = f"{connections} connections, {n_texts} text{'s' * (n_texts > 1)}"
            table += rows(rounds, OURS, setting)
            if n_texts == 1:
                floors += _floors(rounds, servers, connections)
    return table, floors


def _awake_pass(awake: Callable[[], AbstractContextManager[None]], work: Pass) -> Pass:
    def run_awake() -> Figures:
        with awake():
            return work()

    return run_awake


def _floors(rounds: Rounds, servers: list[Server], connections: int) -> list[Floor]:
    return [
        Floor(
            f"throughput over {server.name} at {connections}",
            rounds.throughput(OURS, server.name),
            server.peer.floors[connections],
        )
        for server in servers
        if connections in server.peer.floors
    ]


@contextmanager
def _serving(peer: Peer, name: str, stack: BenchStack, model_file: Path) -> Iterator[Server]:
    if not peer.python.exists():
        raise BenchError(
            f"{peer.name} is not installed in {peer.python.parents[1]}: make bench-peers"
        )
    port = free_ports(1)[0]
    environment = {
        "BENCH_PORT": str(port),
        "BENCH_MODEL": str(model_file),
        "BENCH_TOKENIZER": str(stack.tokenizer_file),
        "PATH": os.pathsep.join([str(peer.python.parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(FOLDER),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    log = stack.repository.parent / f"{peer.file}-{port}.log"
    server = start(name, [str(peer.python), str(FOLDER / f"{peer.file}.py")], environment, log)
    base = f"http://127.0.0.1:{port}"
    processes = ProcessTree(server.process.pid, lambda _: peer.name)
    try:
        server.wait_ready(base + peer.health, START_S)
        targets = {
            n_texts: LoadTarget(
                name,
                base + peer.path,
                JSON,
                [json.dumps({"texts": chunk}).encode() for chunk in chunks(n_texts)],
                processes,
            )
            for n_texts in TEXTS_PER_REQUEST
        }
        if peer.polls:
            with server.paused():
                yield Server(peer, name, targets, server.resumed)
        else:
            yield Server(peer, name, targets)
    finally:
        server.stop()
