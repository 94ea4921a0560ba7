"""One candidate in a process of its own: its speed and its memory.

    python -m converters.optimize.benchmark SPEC.json

The first line on stdout is the memory that loading took. Then each line on stdin, such as
``{"threads": 1, "rows": 8, "seconds": 0.2}``, is answered by a line of JSON: the times of single
runs in seconds. ``converters.optimize.benchmark_process`` is the other end; it runs several such
processes in turn, so that whatever else the machine does affects all of them alike.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from converters.proof.runner import NO_SPINNING

Feed = dict[str, np.ndarray]
Run = Callable[[Feed, int], object]

MIN_RUNS = 3


def main(spec_file: str) -> None:
    spec = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    feeds = {int(rows): _feed(Path(path)) for rows, path in spec["feeds"].items()}
    load = _graph if spec.get("engine") else _original
    # Import first: the memory of imports is the runtime's, not the model's.
    importlib.import_module("onnxruntime" if spec.get("engine") else "torch")
    idle = _resident_bytes()
    _forget_peak()
    run = load(spec)
    run(feeds[max(feeds)], 1)
    _reply({"memory_bytes": max(0, _peak_bytes() - idle)})
    for line in sys.stdin:
        _reply(_timed(run, feeds, json.loads(line)))


def _timed(run: Run, feeds: dict[int, Feed], request: dict[str, Any]) -> list[float]:
    feed, threads = feeds[request["rows"]], request["threads"]
    run(feed, threads)
    times: list[float] = []
    while len(times) < MIN_RUNS or sum(times) < request["seconds"]:
        start = time.perf_counter()
        run(feed, threads)
        times.append(time.perf_counter() - start)
    return times


def _graph(spec: dict[str, Any]) -> Run:
    """ONNX Runtime as it serves, with one session per number of threads, created on first use."""
    import onnxruntime as ort

    levels = {
        "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }
    open_graph = _named(spec["opener"])
    sessions: dict[int, Any] = {}

    def run(feed: Feed, threads: int) -> object:
        if threads not in sessions:
            options = ort.SessionOptions()
            options.intra_op_num_threads = threads
            options.graph_optimization_level = levels[spec["level"]]
            options.add_session_config_entry(NO_SPINNING, "0")
            options.log_severity_level = 4
            sessions[threads] = open_graph(Path(spec["engine"]), options)
        return sessions[threads].run(None, feed)

    return run


def _original(spec: dict[str, Any]) -> Run:
    """The model in its own framework, eagerly."""
    import torch

    from converters.task import ConversionRequest

    samples = spec["samples"] and Path(spec["samples"])
    request = ConversionRequest(spec["name"], spec["source"], samples, spec["options"])
    eager = _named(spec["task"])(request).eager()

    def run(feed: Feed, threads: int) -> object:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            return eager(feed)

    return run


def _named(name: str) -> Any:
    """What is written "module:name"."""
    module, _, name = name.partition(":")
    return getattr(importlib.import_module(module), name)


def _feed(path: Path) -> Feed:
    """The batch in this file; ONNX Runtime takes texts as object arrays."""
    with np.load(path) as stored:
        return {
            name: values.astype(object) if values.dtype.kind == "U" else values
            for name, values in stored.items()
        }


def _reply(reply: object) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


def _forget_peak() -> None:
    """Reset the peak, which was that of the imports (5: man 5 proc, clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    return _status("VmHWM")


def _resident_bytes() -> int:
    return _status("VmRSS")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


if __name__ == "__main__":
    main(*sys.argv[1:])
