"""OpenAI's route of an embedding that answers at once, beside LiteLLM's proxy: one worker each, and
each checks a key."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtests.bench.benchmarks_peers import FOLDER, START_S
from loadtests.bench.errors import BenchError
from loadtests.bench.gateway_alone import gateway_alone
from loadtests.bench.passes import alternate, wrk_pass
from loadtests.bench.payloads import JSON, chunks
from loadtests.bench.report import Floor, Section, rows
from loadtests.bench.settings import ENVIRONMENTS, ROOT, Effort
from loadtests.bench.stack import EMBEDDING
from loadtests.bench.wrk import LoadTarget, run
from loadtests.own_stack.cpu import ProcessTree
from loadtests.own_stack.processes import free_ports, start

OURS, THEIRS = "Tidegate", "LiteLLM's proxy"
INSTANT = "loadtests.bench.instant_embedding"
KEY = "sk-bench-1234"
TIMES = 20.0  # the throughput of LiteLLM that ours has to reach


def litellm(effort: Effort) -> Section:
    """Each in front of an upstream that answers at once: a Triton for ours, OpenAI's API for it."""
    config = effort.repository / EMBEDDING / "config.pbtxt"
    if not config.exists():
        raise BenchError(f"there is no {config}: run `tidegate convert {EMBEDDING}` first")
    bodies = [json.dumps({"model": EMBEDDING, "input": text}).encode() for (text,) in chunks(1)]
    with (
        gateway_alone(INSTANT, [str(config)], EMBEDDING) as alone,
        _proxy(bodies) as theirs,
    ):
        headers = JSON | {"Authorization": f"Bearer {alone.key}"}
        ours = LoadTarget(OURS, f"{alone.url}/v1/embeddings", headers, bodies, alone.processes)
        table, floors = [], []
        for target in (ours, theirs):
            run(target, 8, 3)  # warm
        for connections in effort.connections:
            passes = {
                target.name: wrk_pass(target, connections, effort.seconds)
                for target in (ours, theirs)
            }
            rounds = alternate(passes, effort.rounds)
            table += rows(rounds, THEIRS, f"{connections} connections")
            ratio = rounds.throughput(OURS, THEIRS)
            floors.append(Floor(f"throughput over LiteLLM at {connections}", ratio, TIMES))
    return Section(
        "POST /v1/embeddings to an upstream that answers at once, beside LiteLLM's proxy",
        table,
        floors,
        ["One worker each, key check on; ours has policy, a limit and the audit log too."],
    )


@contextmanager
def _proxy(bodies: list[bytes]) -> Iterator[LoadTarget]:
    python: Path = ENVIRONMENTS / "litellm_proxy" / "bin" / "python"
    if not python.exists():
        raise BenchError("LiteLLM is not installed: run `make bench-litellm`")
    port, upstream_port = free_ports(2)
    logs = ENVIRONMENTS / "litellm_proxy"
    upstream = start(
        "the instant upstream",
        [sys.executable, "-m", INSTANT, str(upstream_port), "openai"],
        {"PYTHONPATH": str(ROOT)},
        logs / "upstream.log",
    )
    variables = {
        "BENCH_PORT": str(port),
        "BENCH_UPSTREAM_PORT": str(upstream_port),
        "BENCH_KEY": KEY,
        # It would fetch its prices from the network, and report its use to its makers.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
    }
    command = [str(python), str(FOLDER / "litellm_proxy.py")]
    proxy = start(THEIRS, command, variables, logs / "proxy.log")
    try:
        url = f"http://127.0.0.1:{port}"
        proxy.wait_ready(f"{url}/health/liveliness", START_S)
        headers = JSON | {"Authorization": f"Bearer {KEY}"}
        processes = ProcessTree(proxy.process.pid, lambda _: THEIRS)
        yield LoadTarget(THEIRS, f"{url}/v1/embeddings", headers, bodies, processes)
    finally:
        proxy.stop()
        upstream.stop()
