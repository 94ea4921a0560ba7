"""Triton's own load generator, ``perf_analyzer``, beside wrk: only where it is installed.

It has its own environment (its wheels need glibc 2.38), is found on PATH or named by an option, and
requests ``/v2/models/NAME/config`` first. If it cannot measure, the table says so.
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
TRIALS = 3  # perf_analyzer's minimum
DIRECT, GATEWAY = "Triton, V2 JSON", "gateway, V2 JSON"
_TITLE = "perf_analyzer on identity_fp32 (16 values, V2 JSON)"
_COLUMNS = ("p50 latency", "p95 latency", "p99 latency")


def perf_analyzer(stack: BenchStack, effort: Effort) -> Section:
    """The gateway against Triton, or a note on why it was not measured."""
    tool = effort.perf_analyzer
    if not tool:
        return Section(_TITLE, (), notes=["Not run: there is no perf_analyzer on PATH."])
    commands = {
        DIRECT: _command(tool, stack.triton, effort.seconds),
        # The key is on the command line (there is no other way); it only exists for this benchmark.
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
        *("--stability-percentage", "999"),  # stability comes from the median of the rounds
    ]


def _pass(command: list[str]) -> Figures:
    """One run; BenchError with the end of its output when it ends without figures."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        file = Path(folder) / "figures.csv"
        run = subprocess.run(
            [*command, "-f", str(file)], capture_output=True, text=True, timeout=300, check=False
        )
        if run.returncode != 0 or not file.exists():
            output = (run.stderr.strip() or run.stdout.strip())[-300:]
            raise BenchError(f"perf_analyzer ended with {run.returncode}: {output}")
        return read(file.read_text(encoding="utf-8"))


def read(text: str) -> Figures:
    """The figures in its CSV, whose latencies are in microseconds."""
    row = next(csv.DictReader(text.splitlines()), None)
    try:
        if row is None:
            raise KeyError("a line")
        p50_ms, p95_ms, p99_ms = (float(row[column]) / 1e3 for column in _COLUMNS)
        return Figures(float(row["Inferences/Second"]), p50_ms, p95_ms, p99_ms)
    except (KeyError, ValueError, TypeError) as error:
        raise BenchError(f"perf_analyzer's CSV has no {error}: {text[:200]!r}") from None
