"""Parity and throughput of one engine, served and not."""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deploy.gpu_checks.served import CUDA, feed

CONNECTIONS = 4
PARITY_ROWS = 8
WARM_UP = 3
TASKS = {"text_embedding": "embedding", "image_classification": "image-classification"}
Ask = Callable[[dict[str, np.ndarray]], np.ndarray]


def measure(engine: dict[str, Any], address: str, options: Any) -> None:
    """Parity, then rows/s at each batch size, through gRPC and in this process."""
    local = in_process(engine, options.cpu)
    with served_by(address, engine["served_as"]) as ask:
        engine["parity"] = parity(engine, ask)
        engine["rows_per_s"] = []
        for batch in options.batches:
            rows = feed(engine["model"], batch)
            through = throughput(ask, rows, options.seconds, CONNECTIONS)
            alone = throughput(local, rows, options.seconds, 1)
            figures = {"batch": batch, "grpc": round(through, 1), "in_process": round(alone, 1)}
            engine["rows_per_s"].append({**figures, "share": round(through / alone, 3)})
            sys.stderr.write(f"{engine['served_as']}: {engine['rows_per_s'][-1]}\n")


def parity(engine: dict[str, Any], ask: Ask) -> dict[str, Any]:
    """The answers against those of the proved FP32 graph in ONNX Runtime on the CPU, within the
    tolerances of this task and precision."""
    from converters.runner import onnx_runner
    from converters.tolerance import tolerance

    rows = feed(engine["model"], PARITY_ROWS)
    reference = onnx_runner(Path(engine["files"]["reference"])).run(None, rows)[0]
    got, wanted = as_scored(engine["model"], ask(rows)), as_scored(engine["model"], reference)
    allowed = tolerance(TASKS[engine["model"]], engine["precision"])
    difference = float(np.abs(got - wanted).max()) if got.shape == wanted.shape else None
    cosine = float((unit(got) * unit(wanted)).sum(axis=1).min()) if difference is not None else None
    held = difference is not None and difference <= allowed.difference
    held = held and cosine is not None and cosine >= allowed.cosine
    return {
        "passed": bool(held),
        "difference": difference,
        "difference_at_most": allowed.difference,
        "cosine": cosine,
        "cosine_at_least": allowed.cosine,
    }


def as_scored(name: str, answers: np.ndarray) -> np.ndarray:
    """FP64, what the tolerances are about: vectors as they are, logits as probabilities."""
    values = answers.astype(np.float64)
    if name == "text_embedding":
        return values
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def throughput(ask: Ask, rows: dict[str, np.ndarray], seconds: float, askers: int) -> float:
    """Rows/s with so many asking without a pause, the first few answers left out."""
    batch = len(next(iter(rows.values())))
    for _ in range(WARM_UP):
        ask(rows)
    started = time.perf_counter()
    end = started + seconds

    def keep_asking(_: int) -> int:
        for count in itertools.count(1):
            ask(rows)
            if time.perf_counter() >= end:
                return count
        return 0

    with ThreadPoolExecutor(askers) as pool:
        batches = sum(pool.map(keep_asking, range(askers)))
    return batches * batch / (time.perf_counter() - started)


def server_version(address: str) -> str:
    import tritonclient.grpc as grpc

    with grpc.InferenceServerClient(address) as client:
        return str(client.get_server_metadata().version)


@contextmanager
def served_by(address: str, model: str) -> Iterator[Ask]:
    """The model behind Triton's gRPC API."""
    import tritonclient.grpc as grpc
    from tritonclient.utils import np_to_triton_dtype

    def ask(rows: dict[str, np.ndarray]) -> np.ndarray:
        inputs = []
        for name, array in rows.items():
            inputs.append(grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        answer = client.infer(model, inputs)
        return np.asarray(answer.as_numpy(answer.get_response().outputs[0].name))

    with grpc.InferenceServerClient(address) as client:
        yield ask


def in_process(engine: dict[str, Any], cpu: bool) -> Ask:
    """The same engine in this process, on the same device, without a server."""
    if engine["runs_on"] == "torch":
        return _torch(Path(engine["files"]["served"]) / "model.pt", "cpu" if cpu else "cuda")
    import onnxruntime

    wanted: list[Any] = ["CPUExecutionProvider"]
    if not cpu:
        wanted.insert(0, (CUDA, {"use_tf32": "0"}))
    session = onnxruntime.InferenceSession(engine["files"]["onnx"], providers=wanted)
    if not cpu and CUDA not in session.get_providers():
        raise RuntimeError("CUDA did not start in ONNX Runtime: its own message above says why")
    return lambda rows: np.asarray(session.run(None, rows)[0])


def _torch(file: Path, where: str) -> Ask:
    import torch

    module: Any = torch.jit.load(str(file), map_location=where)  # type: ignore[no-untyped-call]

    def ask(rows: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            given = module(*(torch.from_numpy(each).to(where) for each in rows.values()))
        return np.asarray(given.float().cpu().numpy())

    return ask
