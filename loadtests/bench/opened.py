"""What the ``onnxruntime`` backend gains by how it opens a graph, without a server:
``python -m loadtests.bench.opened FILE.onnx ...``.

Each graph of a text encoder (``input_ids`` and ``attention_mask``, INT64 [rows, tokens]) is opened
by ONNX Runtime's defaults and as the backend opens it, both with one thread, and as the backend
opens it for a request that is alone, with two. They run in turn; the figures are medians: CPU
milliseconds a run, and for two threads also the milliseconds that pass. ``largest difference`` is
between the outputs of the first two.
"""

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

OPENER = "serving.backends.onnxruntime.ort_cpu"
CPU = "CPUExecutionProvider"
SHAPES = ((1, 9), (1, 13), (4, 13), (8, 13), (32, 13))  # rows and tokens: of real texts the median
PASSES, RUNS = 9, 3
PAUSE_S = 0.002  # a thread that looks for work after a run is counted too


def main() -> None:
    parser = argparse.ArgumentParser(description="Time text encoders by how they are opened.")
    parser.add_argument("file", nargs="+", type=Path, help="NAME_onnx/VERSION/model.onnx")
    files = parser.parse_args().file
    columns = (
        "graph",
        "rows, tokens",
        "defaults: CPU ms",
        "backend: CPU ms",
        "ratio",
        "two threads: CPU ms",
        "two threads: ms",
        "largest difference",
    )
    _write_row(columns)
    _write_row("---:" for _ in columns)
    for file in files:
        for cells in rows(file):
            _write_row(cells)


def _write_row(cells: Iterable[str]) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


def rows(file: Path) -> Iterator[tuple[str, ...]]:
    open_on_cpu = importlib.import_module(OPENER).open_on_cpu
    sessions = [
        onnxruntime.InferenceSession(file, _options(1), providers=[CPU]),
        open_on_cpu(file, _options(1)),
        open_on_cpu(file, _options(2)),
    ]
    for shape in SHAPES:
        ids = np.random.default_rng(0).integers(1000, 20000, shape)
        feed = {"input_ids": ids, "attention_mask": np.ones(shape, np.int64)}
        first, second = (session.run(None, feed)[0] for session in sessions[:2])
        (before, _), (after, _), (two_cpu, two) = timed(
            [partial(session.run, None, feed) for session in sessions]
        )
        milliseconds = (f"{figure:.2f}" for figure in (before, after, after / before, two_cpu, two))
        difference = f"{np.abs(first - second).max():.1g}"
        yield str(Path(*file.parts[-3:])), f"{shape[0]}, {shape[1]}", *milliseconds, difference


def timed(runs: list[Callable[[], Any]]) -> list[tuple[float, float]]:
    """For each the median CPU milliseconds of a run, and the milliseconds that pass."""
    taken: list[list[tuple[float, float]]] = [[] for _ in runs]
    for _ in range(PASSES):
        for run, figures in zip(runs, taken, strict=True):
            for _ in range(RUNS):
                cpu, start = time.process_time(), time.perf_counter()
                run()
                passed = time.perf_counter() - start
                time.sleep(PAUSE_S)
                figures.append(((time.process_time() - cpu) * 1e3, passed * 1e3))
    return [
        (statistics.median(c for c, _ in figures), statistics.median(p for _, p in figures))
        for figures in taken
    ]


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


if __name__ == "__main__":
    main()
