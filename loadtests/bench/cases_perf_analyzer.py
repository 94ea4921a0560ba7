"""Triton's own load generator, ``perf_analyzer``, beside wrk: only where it is installed.

It lives in an environment of its own (its wheels need glibc 2.38), is found on PATH or named by an
option, and asks for ``/v2/models/NAME/config`` first. Where it cannot measure, the table says so.
"""

import csv
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from loadtests.bench.errors import BenchError
from loadtests.bench.passes import alternate
from loadtests.bench.report import Section, rows
from loadtests.bench.settings import Effort
from loadtests.bench.stack import IDENTITY, BenchStack
from loadtests.bench.wrk import Figures

CONNECTIONS = 8
TRIALS = 3  # perf_analyzer's least
DIRECT, GATEWAY = "Triton, V2 JSON", "gateway, V2 JSON"
_TITLE = "perf_analyzer on identity_fp32 (16 values, V2 JSON)"
_COLUMNS = ("p50 latency", "p95 latency", "p99 latency")


def perf_analyzer(stack: BenchStack, effort: Effort) -> Section:
    """Gateway against Triton, or a note on why not."""
    tool = effort.perf_analyzer
    if not tool:
        return Section(_TITLE, (), notes=["Not run: there is no perf_analyzer on PATH."])
    commands = {
        DIRECT: _command(tool, stack.triton, effort.seconds),
        # The key is on the command line (there is no other way): it ends with this bench's stack.
        GATEWAY: [
            *_command(tool, stack.gateway, effort.seconds),
            *("-H", f"Authorization: Bearer {stack.key}"),
        ],
    }
    try:
        passes = {name: partial(_pass, command) for name, command in commands.items()}
        rounds = alternate(passes, effort.rounds)
    except BenchError as error:
        return Section(_TITLE, (), notes=[f"Not measured: {error}"])
    return Section(_TITLE, rows(rounds, DIRECT, f"{CONNECTIONS} connections"))


def _command(tool: str, url: str, seconds: int) -> list[str]:
    return [
        *(tool, "-m", IDENTITY, "-i", "http", "-u", url.removeprefix("http://")),
        *("--shape", "INPUT0:16", "--concurrency-range", str(CONNECTIONS)),
        *("--input-tensor-format", "json", "--output-tensor-format", "json"),
        *("--measurement-interval", str(seconds * 1000), "--max-trials", str(TRIALS)),
        *("--stability-percentage", "999"),  # the median of the rounds is what is stable
    ]


def _pass(command: list[str]) -> Figures:
    """One run; BenchError with its last words when it ends without figures."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        file = Path(folder) / "figures.csv"
        run = subprocess.run(
            [*command, "-f", str(file)], capture_output=True, text=True, timeout=300, check=False
        )
        if run.returncode != 0 or not file.exists():
            said = (run.stderr.strip() or run.stdout.strip())[-300:]
            raise BenchError(f"perf_analyzer ended with {run.returncode}: {said}")
        return read(file.read_text(encoding="utf-8"))


def read(text: str) -> Figures:
    """The figures in its CSV, whose latencies are in microseconds."""
    found = next(csv.DictReader(text.splitlines()), None)
    try:
        if found is None:
            raise KeyError("a line")
        p50_ms, p95_ms, p99_ms = (float(found[column]) / 1e3 for column in _COLUMNS)
        return Figures(float(found["Inferences/Second"]), p50_ms, p95_ms, p99_ms)
    except (KeyError, ValueError, TypeError) as error:
        raise BenchError(f"perf_analyzer's CSV has no {error}: {text[:200]!r}") from None
