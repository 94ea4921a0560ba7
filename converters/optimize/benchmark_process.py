"""The processes that time the candidates: started, used in turn, stopped."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import ConversionError
from converters.offline import OFFLINE

ROWS = (1, 8, 32)
THREADS = (1, 2)
# Long enough for several runs, short enough that a neighbour's burst hits several candidates.
SECONDS = 0.25


@dataclass(frozen=True)
class Cell:
    """One measuring point: the rows of a batch and the threads of the runtime."""

    rows: int
    threads: int

    @property
    def name(self) -> str:
        return f"rows{self.rows}_threads{self.threads}"


CELLS = tuple(Cell(rows, threads) for threads in THREADS for rows in ROWS)


@dataclass(frozen=True)
class Times:
    """One visit to one cell: rows/s by the median run, and percentiles of a run in ms."""

    rows_s: float
    p50_ms: float
    p95_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float], rows: int) -> "Times":
        median, late = np.percentile(seconds, [50, 95])
        return cls(float(rows / median), float(1e3 * median), float(1e3 * late))


@dataclass
class BenchmarkProcess:
    """One candidate in its process; ``spec`` is what ``benchmark.main`` reads."""

    spec: Mapping[str, Any]
    memory_bytes: int = 0
    _log: Path = Path()
    _process: "subprocess.Popen[str] | None" = field(default=None, repr=False)

    def start(self, folder: Path) -> None:
        """Load the model; ConversionError says why that failed."""
        work = Path(tempfile.mkdtemp(dir=folder, prefix="benchmark-"))
        file, self._log = work / "spec.json", work / "stderr.txt"
        file.write_text(json.dumps(self.spec), encoding="utf-8")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "converters.optimize.benchmark", str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=OFFLINE,
            )
        self.memory_bytes = self._reply()["memory_bytes"]

    def visit(self, cell: Cell) -> Times:
        """Time a few runs now; ConversionError if the process has ended."""
        if self._process is None or self._process.stdin is None:
            raise ConversionError("the benchmark process was not started")
        request = {"rows": cell.rows, "threads": cell.threads, "seconds": SECONDS}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._died() from error
        return Times.of(self._reply(), cell.rows)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.communicate()

    def _reply(self) -> Any:
        line = self._process.stdout.readline() if self._process and self._process.stdout else ""
        if not line:
            raise self._died()
        return json.loads(line)

    def _died(self) -> ConversionError:
        stderr = self._log.read_text(encoding="utf-8", errors="replace").strip()
        last = " ".join((stderr.splitlines() or ["no message"])[-1].split())[:300]
        return ConversionError(f"it cannot be run on this machine: {last}")


def write_feeds(
    feeds: Iterable[tuple[int, Mapping[str, np.ndarray]]], folder: Path
) -> dict[str, str]:
    """Write the batches to files; the paths by their number of rows."""
    paths = {}
    for rows, feed in feeds:
        path = folder / f"rows{rows}.npz"
        plain = {n: v.astype(np.str_) if v.dtype == object else v for n, v in feed.items()}
        np.savez(path, **plain)
        paths[str(rows)] = str(path)
    return paths
