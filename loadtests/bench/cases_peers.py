"""Other ways to serve the same model file with the same tokeniser, under the same load."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.bench.errors import BenchError
from loadtests.bench.passes import alternate, wrk_pass
from loadtests.bench.payloads import JSON, embedding_task, embedding_v2, texts
from loadtests.bench.processes import free_ports, start
from loadtests.bench.report import Floor, Section, rows
from loadtests.bench.settings import ENVIRONMENTS, Effort
from loadtests.bench.stack import BenchStack
from loadtests.bench.wrk import Target, run

FOLDER = Path(__file__).with_name("peers")
START_S = 120.0
CONNECTIONS = (8, 32)
OURS, DIRECT = "Tidegate, task route", "Tidegate, Triton direct"


@dataclass(frozen=True)
class Peer:
    """``file`` in ``peers/`` runs in the Python of its own environment."""

    name: str
    file: str
    path: str
    health: str
    body: Callable[[str], Any] = lambda text: {"text": text}

    @property
    def python(self) -> Path:
        return ENVIRONMENTS / self.file / "bin" / "python"


PEERS = (
    Peer("FastAPI + ONNX Runtime", "fastapi_onnx", "/embed", "/docs"),
    Peer("LitServe", "litserve_app", "/predict", "/health"),
    Peer("BentoML", "bentoml_app", "/embed", "/readyz", lambda text: {"texts": [text]}),
)


def peers(stack: BenchStack, effort: Effort) -> Section:
    """All servers run at once, but only one of them is under load at a time."""
    with ExitStack() as open_servers:
        targets = [embedding_task(OURS, stack), embedding_v2(DIRECT, stack.triton)]
        targets += [open_servers.enter_context(_serving(peer, stack)) for peer in PEERS]
        for target in targets:
            run(target, CONNECTIONS[-1], 2)  # warm
        table, floors = [], []
        for connections in CONNECTIONS:
            passes = {
                target.name: wrk_pass(target, connections, effort.seconds) for target in targets
            }
            rounds = alternate(passes, effort.rounds)
            table += rows(rounds, OURS, f"{connections} connections")
        for peer in PEERS:
            ratio = rounds.ratio(OURS, peer.name)
            floors.append(Floor(f"ahead of {peer.name} at {CONNECTIONS[-1]}", ratio, 1.0))
    note = "Each ratio is over our own task route, key check on; 1 text a request, FP32."
    return Section("Against peers: real texts in, vectors out as JSON", table, floors, [note])


@contextmanager
def _serving(peer: Peer, stack: BenchStack) -> Iterator[Target]:
    if not peer.python.exists():
        raise BenchError(
            f"{peer.name} is not installed in {peer.python.parents[1]}: make bench-peers"
        )
    port = free_ports(1)[0]
    environment = {
        "BENCH_PORT": str(port),
        "BENCH_MODEL": str(stack.model_file),
        "BENCH_TOKENIZER": str(stack.tokenizer_file),
        "PATH": os.pathsep.join([str(peer.python.parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(FOLDER),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    log = stack.repository.parent / f"{peer.file}.log"
    server = start(peer.name, [str(peer.python), str(FOLDER / f"{peer.file}.py")], environment, log)
    base = f"http://127.0.0.1:{port}"
    try:
        server.wait_ready(base + peer.health, START_S)
        yield Target(
            peer.name,
            base + peer.path,
            JSON,
            [json.dumps(peer.body(text)).encode() for text in texts()],
        )
    finally:
        server.stop()
