"""Parity and throughput of one engine, served and in process."""

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
            grpc_rate = throughput(ask, rows, options.seconds, CONNECTIONS)
            local_rate = throughput(local, rows, options.seconds, 1)
            figures = {
                "batch": batch,
                "grpc": round(grpc_rate, 1),
                "in_process": round(local_rate, 1),
            }
            engine["rows_per_s"].append({**figures, "share": round(grpc_rate / local_rate, 3)})
            sys.stderr.write(f"{engine['served_as']}: {engine['rows_per_s'][-1]}\n")


def parity(engine: dict[str, Any], ask: Ask) -> dict[str, Any]:
    """Compare the answers with those of the proved FP32 graph in ONNX Runtime on the CPU, within
    the tolerances of this task and precision."""
    from converters.proof.runner import onnx_runner
    from converters.proof.tolerance import tolerance

    rows = feed(engine["model"], PARITY_ROWS)
    reference = onnx_runner(Path(engine["files"]["reference"])).run(None, rows)[0]
    actual, expected = as_scored(engine["model"], ask(rows)), as_scored(engine["model"], reference)
    bounds = tolerance(TASKS[engine["model"]], engine["precision"])
    difference = float(np.abs(actual - expected).max()) if actual.shape == expected.shape else None
    cosine = (
        float((unit(actual) * unit(expected)).sum(axis=1).min()) if difference is not None else None
    )
    held = difference is not None and difference <= bounds.difference
    held = held and cosine is not None and cosine >= bounds.cosine
    return {
        "passed": bool(held),
        "difference": difference,
        "difference_at_most": bounds.difference,
        "cosine": cosine,
        "cosine_at_least": bounds.cosine,
    }


def as_scored(name: str, answers: np.ndarray) -> np.ndarray:
    """The values that the tolerances apply to, FP64: vectors as they are, logits as
    probabilities."""
    values = answers.astype(np.float64)
    if name == "text_embedding":
        return values
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def throughput(ask: Ask, rows: dict[str, np.ndarray], seconds: float, clients: int) -> float:
    """Rows/s with ``clients`` threads sending back to back, after a warm-up."""
    batch = len(next(iter(rows.values())))
    for _ in range(WARM_UP):
        ask(rows)
    started = time.perf_counter()
    end = started + seconds

    def send_until_end(_: int) -> int:
        for count in itertools.count(1):
            ask(rows)
            if time.perf_counter() >= end:
                return count
        return 0

    with ThreadPoolExecutor(clients) as pool:
        batches = sum(pool.map(send_until_end, range(clients)))
    return batches * batch / (time.perf_counter() - started)


def server_version(address: str) -> str:
    import tritonclient.grpc as grpc

    with grpc.InferenceServerClient(address) as client:
        return str(client.get_server_metadata().version)


@contextmanager
def served_by(address: str, model: str) -> Iterator[Ask]:
    """A function that infers with the model through Triton's gRPC API."""
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
    """A function that runs the same engine in this process, on the same device."""
    if engine["runs_on"] == "torch":
        return _torch(Path(engine["files"]["served"]) / "model.pt", "cpu" if cpu else "cuda")
    import onnxruntime

    providers: list[Any] = ["CPUExecutionProvider"]
    if not cpu:
        providers.insert(0, (CUDA, {"use_tf32": "0"}))
    session = onnxruntime.InferenceSession(engine["files"]["onnx"], providers=providers)
    if not cpu and CUDA not in session.get_providers():
        raise RuntimeError("CUDA did not start in ONNX Runtime: see its own message above")
    return lambda rows: np.asarray(session.run(None, rows)[0])


def _torch(file: Path, device: str) -> Ask:
    import torch

    module: Any = torch.jit.load(str(file), map_location=device)  # type: ignore[no-untyped-call]

    def ask(rows: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            output = module(*(torch.from_numpy(array).to(device) for array in rows.values()))
        return np.asarray(output.float().cpu().numpy())

    return ask
