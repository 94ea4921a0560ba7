"""What each client is asked to do, and what became of it."""

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
# (model, what perf_analyzer must be told of its inputs, and more)
RUNS = (
    ("http", "identity_fp32", ("--shape", "INPUT0:16")),
    ("http", "text_embedding", ("--string-data", "hello")),
    ("grpc", "identity_fp32", ("--shape", "INPUT0:16")),
    ("grpc", "text_embedding", ("--string-data", "hello")),
    ("grpc", "identity_fp32", ("--shape", "INPUT0:16", "--streaming", "--async")),
)


@dataclass(frozen=True)
class Target:
    """The stack, and the programs that call it."""

    url: str
    grpc_address: str
    key: str
    kserve_python: Path
    perf_analyzer: Path


@dataclass(frozen=True)
class Outcome:
    client: str
    what: str
    fault: str  # '' when it went well
    note: str = ""


def kserve(target: Target) -> Iterator[Outcome]:
    """KServe's REST and gRPC clients."""
    run = subprocess.run(
        [target.kserve_python, SCRIPT, target.url, target.grpc_address],
        env={**os.environ, "TIDEGATE_API_KEY": target.key},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    yield from (Outcome(**line) for line in lines)
    if run.returncode != 0 or not lines:
        yield Outcome("KServe", "the whole", _last_words(run))


def perf_analyzer(target: Target) -> Iterator[Outcome]:
    """NVIDIA's load generator for a second each: it must measure, with no failed request."""
    addresses = {"http": target.url.partition("://")[2], "grpc": target.grpc_address}
    for api, model, more in RUNS:
        command = [
            *(str(target.perf_analyzer), "-m", model, "-i", api, "-u", addresses[api]),
            # The key is on the command line: there is no other way.
            *("-H", f"authorization: Bearer {target.key}", "--concurrency-range", "2"),
            *("--measurement-interval", "1000", "--max-trials", "3"),
            *("--stability-percentage", "999", *more),
        ]
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        found = _THROUGHPUT.search(run.stdout)
        streams = ", stream" if "--streaming" in more else ""
        yield Outcome(
            f"perf_analyzer -i {api}",
            f"{model}{streams}",
            "" if run.returncode == 0 and found else _last_words(run),
            f"{found[1]} infer/s" if found else "",
        )


def _last_words(run: subprocess.CompletedProcess[str]) -> str:
    said = (run.stderr.strip() or run.stdout.strip())[-300:]
    return f"ended with {run.returncode}: {said}"
