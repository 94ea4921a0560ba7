"""The same closed loop by NVIDIA's perf_analyzer and by our own generator: do they agree?

Both send V2 JSON with real texts, as many at once, one run after the other: ours, theirs, ours.
"""

import csv
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from loadtests.preflight import CannotStart

CONNECTIONS = 4
AGREE = 0.15  # of perf_analyzer's figure
ROWS = 500  # that perf_analyzer sends in turn
_BUSY = 0.5  # of a core: then the client itself is in its latencies


class NotCompared(Exception):
    """A client measured nothing: the message says why."""


@dataclass(frozen=True)
class Client:
    """What one client measured: requests per second, the median latency, and the share of a core
    that it used itself."""

    rate: float
    p50_ms: float
    cpu: float


@dataclass(frozen=True)
class CrossCheck:
    """``ours`` are the runs before and after perf_analyzer's; ``why`` is the reason why it could
    not be done, or ''."""

    theirs: Client | None = None
    ours: tuple[Client, ...] = ()
    why: str = ""

    @property
    def ratio(self) -> float | None:
        """Our mean rate, of perf_analyzer's."""
        if self.theirs is None or not self.ours:
            return None
        return sum(own.rate for own in self.ours) / len(self.ours) / self.theirs.rate

    def __str__(self) -> str:
        ratio = self.ratio
        if ratio is None or self.theirs is None:
            return f"Not checked against perf_analyzer: {self.why}."
        mean = ratio * self.theirs.rate
        said = (
            f"V2 in a closed loop of {CONNECTIONS}: perf_analyzer {self.theirs.rate:.4g}/s (p50 "
            f"{self.theirs.p50_ms:.4g} ms), this generator {mean:.4g}/s (p50 "
            f"{' and '.join(f'{own.p50_ms:.4g}' for own in self.ours)} ms): ratio {ratio:.2f}"
        )
        if abs(ratio - 1) <= AGREE:
            return f"{said}, within {AGREE:.0%}."
        return f"{said}, more than {AGREE:.0%} apart: {self._difference()}."

    def _difference(self) -> str:
        """Why they differ, as far as the figures say."""
        rates = [own.rate for own in self.ours]
        spread = max(rates) / min(rates) - 1
        if spread > AGREE:
            return f"this generator's own two runs differ by {spread:.0%}, so the machine varies"
        cpu = max(own.cpu for own in self.ours)
        if cpu > _BUSY:
            return f"this generator itself used {cpu:.0%} of a core, which its latencies include"
        if self.theirs and self.theirs.cpu > _BUSY:
            return f"perf_analyzer itself used {self.theirs.cpu:.0%} of a core"
        return "neither client was busy and the machine was steady, so the cause is unknown"


def find_perf_analyzer(root: Path) -> Path:
    """The one of ``make clients``, else the one on PATH; CannotStart without either."""
    own = root / ".venv-clients/perf_analyzer/bin/perf_analyzer"
    executable = own if own.exists() else shutil.which("perf_analyzer")
    if not executable:
        raise CannotStart("there is no perf_analyzer to compare with: run `make clients`")
    return Path(executable)


def perf_analyzer(tool: Path, url: str, key: str, model: str, data: str, seconds: float) -> Client:
    """One run of perf_analyzer; ``data`` is its JSON with the tensors of each request. Raises
    NotCompared with the end of its output if it ends without figures."""
    with tempfile.TemporaryDirectory(prefix="tidegate-signoff-") as name:
        folder = Path(name)
        (folder / "data.json").write_text(data, encoding="utf-8")
        command = [
            *(str(tool), "-m", model, "-i", "http", "-u", url.partition("://")[2]),
            *("--concurrency-range", str(CONNECTIONS), "--input-data", str(folder / "data.json")),
            *("--input-tensor-format", "json", "--output-tensor-format", "json"),
            *("--measurement-interval", str(round(1000 * seconds)), "--max-trials", "3"),
            *("--stability-percentage", "999", "-f", str(folder / "figures.csv")),
        ]
        if key:  # on the command line: there is no other way
            command += ["-H", f"Authorization: Bearer {key}"]
        before = os.times()
        try:
            run = subprocess.run(
                command,
                env={**os.environ, **_libraries(tool)},
                capture_output=True,
                text=True,
                timeout=120 + 10 * seconds,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotCompared(f"perf_analyzer did not end well: {error}") from None
        after = os.times()
        if run.returncode != 0 or not (folder / "figures.csv").exists():
            output = " ".join((run.stderr.strip() or run.stdout.strip())[-300:].split())
            raise NotCompared(f"perf_analyzer ended with {run.returncode}: {output}")
        rate, p50_ms = figures_of((folder / "figures.csv").read_text(encoding="utf-8"))
    used_s = sum(after[2:4]) - sum(before[2:4])  # of children
    return Client(rate, p50_ms, used_s / (after.elapsed - before.elapsed))


def figures_of(text: str) -> tuple[float, float]:
    """Its CSV's requests per second, and its median latency in milliseconds (there in us)."""
    try:
        row = next(csv.DictReader(text.splitlines()))
        return float(row["Inferences/Second"]), float(row["p50 latency"]) / 1e3
    except (StopIteration, KeyError, ValueError, TypeError):
        raise NotCompared(f"perf_analyzer's figures cannot be read: {text[:200]!r}") from None


def _libraries(tool: Path) -> dict[str, str]:
    """It links against CUDA's runtime, which stands in its environment."""
    folders = tool.parent.parent.glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib")
    return {"LD_LIBRARY_PATH": ":".join(map(str, folders))}
