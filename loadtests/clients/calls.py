"""The calls of each client, and their outcomes."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("kserve_calls.py")
TIMEOUT_S = 120
_THROUGHPUT = re.compile(r"throughput: ([\d.]+) infer/sec")
# (protocol, model, perf_analyzer's flags for its inputs and mode)
RUNS = (
    ("http", "identity_fp32", ("--shape", "INPUT0:16")),
    ("http", "text_embedding", ("--string-data", "hello")),
    ("grpc", "identity_fp32", ("--shape", "INPUT0:16")),
    ("grpc", "text_embedding", ("--string-data", "hello")),
    ("grpc", "identity_fp32", ("--shape", "INPUT0:16", "--streaming", "--async")),
)


@dataclass(frozen=True)
class Stack:
    """The stack, and the clients that call it."""

    url: str
    grpc_address: str
    key: str
    kserve_python: Path
    perf_analyzer: Path


@dataclass(frozen=True)
class Outcome:
    client: str
    what: str
    fault: str  # '' if it succeeded
    note: str = ""


def kserve(stack: Stack) -> Iterator[Outcome]:
    """KServe's REST and gRPC clients."""
    run = subprocess.run(
        [stack.kserve_python, SCRIPT, stack.url, stack.grpc_address],
        env={**os.environ, "TIDEGATE_API_KEY": stack.key},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    yield from (Outcome(**line) for line in lines)
    if run.returncode != 0 or not lines:
        yield Outcome("KServe", "all calls", _failure(run))


def perf_analyzer(stack: Stack) -> Iterator[Outcome]:
    """NVIDIA's load generator, one second per run: it must measure without a failed request."""
    addresses = {"http": stack.url.partition("://")[2], "grpc": stack.grpc_address}
    for api, model, flags in RUNS:
        command = [
            *(str(stack.perf_analyzer), "-m", model, "-i", api, "-u", addresses[api]),
            # The key is on the command line: there is no other way.
            *("-H", f"authorization: Bearer {stack.key}", "--concurrency-range", "2"),
            *("--measurement-interval", "1000", "--max-trials", "3"),
            *("--stability-percentage", "999", *flags),
        ]
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        throughput = _THROUGHPUT.search(run.stdout)
        streams = ", stream" if "--streaming" in flags else ""
        yield Outcome(
            f"perf_analyzer -i {api}",
            f"{model}{streams}",
            "" if run.returncode == 0 and throughput else _failure(run),
            f"{throughput[1]} infer/s" if throughput else "",
        )


def _failure(run: subprocess.CompletedProcess[str]) -> str:
    output = (run.stderr.strip() or run.stdout.strip())[-300:]
    return f"ended with {run.returncode}: {output}"
