"""Run ``wrk``, a compiled load generator, and read its measurements.

It gets the bodies in a file and the headers in its environment: other users of the machine can
read a command line, and an API key is among the headers.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.bench.errors import BenchError, NothingAnswered
from loadtests.own_stack.cpu import ProcessTree, used_between

SCRIPT = Path(__file__).with_name("send.lua")
TIMEOUT_S = 30
# Times as long is a pass within which nothing was answered: BentoML with 32 requests of 8 texts.
PATIENCE = 8


@dataclass(frozen=True)
class LoadTarget:
    """One URL to load. The bodies are sent in turn. ``server``: the processes that answer."""

    name: str
    url: str
    headers: Mapping[str, str]
    bodies: Sequence[bytes]
    server: ProcessTree | None = None


@dataclass(frozen=True)
class Figures:
    """One pass, or the median of several. Latencies cover all answers; times in milliseconds.

    ``cpu_us``: CPU microseconds a request, by the name of the process; empty if not measured.
    """

    rps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_us: Mapping[str, float] = field(default_factory=dict)

    @property
    def total_cpu_us(self) -> float:
        return sum(self.cpu_us.values())


def require_wrk() -> None:
    if shutil.which("wrk") is None:
        raise BenchError("wrk is not installed: apt-get install -y wrk")


def run(target: LoadTarget, connections: int, seconds: int) -> Figures:
    """One pass from one thread, and a longer one if nothing was answered within it; BenchError if
    any request failed."""
    try:
        return _run(target, connections, seconds)
    except NothingAnswered:
        return _run(target, connections, PATIENCE * seconds)


def _run(target: LoadTarget, connections: int, seconds: int) -> Figures:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={TIMEOUT_S}s"]
    with _bodies(target.bodies) as file:
        before = target.server.cpu_s() if target.server else {}
        result = subprocess.run(
            [*command, "-s", str(SCRIPT), target.url],
            env={**os.environ, "BENCH_BODIES": file, "BENCH_HEADERS": _lines(target.headers)},
            capture_output=True,
            text=True,
            timeout=seconds + 2 * TIMEOUT_S,
            check=False,
        )
        used = used_between(before, target.server.cpu_s()) if target.server else {}
    if result.returncode != 0:
        raise BenchError(f"wrk failed on {target.name}: {result.stderr.strip()[:300]}")
    return parse(target.name, result.stdout, used)


def parse(name: str, output: str, cpu_s: Mapping[str, float]) -> Figures:
    """The figures in wrk's output, which ends with the script's line of JSON. ``cpu_s``: what the
    pass cost, by the name of the process. BenchError if a request failed, NothingAnswered if none
    did and none was answered."""
    try:
        figures = json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise BenchError(f"wrk's output for {name} is not readable: {output[-300:]!r}") from None
    failed = figures["refused"] + figures["broken"]
    if failed or not figures["requests"]:
        raise (BenchError if failed else NothingAnswered)(
            f"{name}: {failed} of {figures['requests']} requests failed "
            f"({figures['refused']} refused, {figures['broken']} without an answer)"
        )
    return Figures(
        rps=figures["requests"] / figures["duration_us"] * 1e6,
        p50_ms=figures["p50_us"] / 1e3,
        p95_ms=figures["p95_us"] / 1e3,
        p99_ms=figures["p99_us"] / 1e3,
        cpu_us={name: seconds / figures["requests"] * 1e6 for name, seconds in cpu_s.items()},
    )


def record(bodies: Sequence[bytes]) -> bytes:
    """The bodies as ``send.lua`` reads them."""
    return b"".join(b"%d\n%s" % (len(body), body) for body in bodies)


@contextmanager
def _bodies(bodies: Sequence[bytes]) -> Iterator[str]:
    with tempfile.NamedTemporaryFile(prefix="tidegate-bench-") as file:
        file.write(record(bodies))
        file.flush()
        yield file.name


def _lines(headers: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in headers.items())
