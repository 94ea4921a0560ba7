"""Compare what two engines of one model cost on this machine's CPU, in one run.

    tidegate convert text_embedding
    tidegate convert text_embedding --engine torch
    python deploy/engine_cpu.py text_embedding_onnx text_embedding_torch

Serves both engines of the repository in a scratch Triton, and sends them the same token ids over
gRPC, one request at a time, in turns. Prints, for each batch size and length, the CPU time of each
engine's processes for a request, and the time that a client waits for it; the median of the turns.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402 - from this checkout
import psutil  # noqa: E402
from tritonclient import grpc as triton  # noqa: E402

from serving.repository.model_repository import ModelRepository  # noqa: E402
from serving.triton.stubs import live_stubs  # noqa: E402
from tidegate.app.paths import Paths  # noqa: E402
from tidegate.app.scratch import scratch_triton  # noqa: E402

TURNS, WARM_UP = 5, 5
VOCABULARY = 1000  # ids that every model of ours has


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    paths = Paths.current()
    repository = ModelRepository(options.repository or paths.repository)
    with scratch_triton(repository, paths.state, *options.engines) as address:
        _say(f"CPU ms a request (waited ms), one request at a time, {options.requests} a turn")
        _say("rows x tokens".ljust(16) + "".join(name.ljust(32) for name in options.engines))
        for rows in options.rows:
            for length in options.lengths:
                figures = _measured(address, options.engines, rows, length, options.requests)
                cells = (f"{cpu:.2f} ({wait:.2f})".ljust(32) for cpu, wait in figures)
                _say(f"{rows} x {length}".ljust(16) + "".join(cells))
    return 0


def _measured(
    address: str, engines: Sequence[str], rows: int, length: int, requests: int
) -> list[tuple[float, float]]:
    """For each engine: CPU ms and waited ms a request, the median of the turns."""
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (rows, length))
    tensors = []
    for name, values in (("input_ids", ids), ("attention_mask", np.ones_like(ids))):
        tensor = triton.InferInput(name, list(values.shape), "INT64")
        tensor.set_data_from_numpy(values)
        tensors.append(tensor)
    figures: dict[str, list[tuple[float, float]]] = {engine: [] for engine in engines}
    with triton.InferenceServerClient(address) as client:
        for engine in engines:
            for _ in range(WARM_UP):
                client.infer(engine, tensors)
        for _ in range(TURNS):
            for engine in engines:
                cpu, clock = _cpu_s(engine), time.perf_counter()
                for _ in range(requests):
                    client.infer(engine, tensors)
                waited = time.perf_counter() - clock
                figures[engine].append((_cpu_s(engine) - cpu, waited))
    scale = 1000 / requests
    return [
        (
            scale * statistics.median(cpu for cpu, _ in figures[engine]),
            scale * statistics.median(waited for _, waited in figures[engine]),
        )
        for engine in engines
    ]


def _cpu_s(engine: str) -> float:
    """CPU seconds that the processes of an engine have used so far."""
    stubs = {stub.pid for stub in live_stubs(psutil.Process().pid) if stub.model == engine}
    times = [psutil.Process(pid).cpu_times() for pid in stubs]
    return sum(used.user + used.system for used in times)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engines", nargs="+", help="models of the repository that take token ids")
    parser.add_argument("--repository", type=Path, help="default: that of this project")
    parser.add_argument("--rows", type=_numbers, default=(1, 8))
    parser.add_argument("--lengths", type=_numbers, default=(16, 32, 128))
    parser.add_argument("--requests", type=int, default=40, help="of a turn")
    return parser


def _say(line: str) -> None:
    sys.stdout.write(f"{line.rstrip()}\n")
    sys.stdout.flush()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


if __name__ == "__main__":
    raise SystemExit(main())
