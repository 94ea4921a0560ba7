"""Parity and throughput of one engine, served and in process."""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from deploy.gpu_checks.served import CUDA, feed, normalised

# Processes, since one Python process does not keep a GPU busy, and connections of each.
CLIENTS, CONNECTIONS = 4, 2
INFER = "/inference.GRPCInferenceService/ModelInfer"
REQUEST_TIMEOUT_S = 60.0
# Otherwise gRPC merges channels to one address into one connection.
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
PARITY_ROWS = 8
WARM_UP = 3
TASKS = {"text_embedding": "embedding", "image_classification": "image-classification"}
Rows = dict[str, np.ndarray]
Ask = Callable[[Rows], np.ndarray]


def measure(engine: dict[str, Any], address: str, options: Any) -> None:
    """Parity, then at each batch size the rows/s through gRPC, from arrays to arrays in this
    process, and with tensors that stay on the device (``bound``, the engine alone).

    ``share`` is gRPC divided by ``bound``; ``road_ms`` is what one request, alone, takes longer
    through gRPC than in this process.
    """
    local, bound = in_process(engine, options.cpu)
    clients = ProcessPoolExecutor(CLIENTS, mp_context=get_context("spawn"))
    with clients as pool, served_by(address, engine["served_as"]) as ask:
        engine["parity"] = parity(engine, ask)
        engine["rows_per_s"] = []
        for batch in options.batches:
            rows = feed(engine["model"], batch)
            request = serialized(engine["served_as"], rows)
            grpc_rate = served_rate(pool, address, request, options.seconds) * batch
            local_ms, bound_ms = (
                milliseconds(call, options.seconds / 2)
                for call in (partial(local, rows), bound(rows))
            )
            figures = {
                "batch": batch,
                "grpc": round(grpc_rate, 1),
                "in_process": round(batch / local_ms * 1e3, 1),
                "bound": round(batch / bound_ms * 1e3, 1),
                "share": round(grpc_rate * bound_ms / batch / 1e3, 3),
                "road_ms": round(
                    milliseconds(partial(ask, rows), options.seconds / 4) - local_ms, 3
                ),
            }
            engine["rows_per_s"].append(figures)
            sys.stderr.write(f"{engine['served_as']}: {figures}\n")


def parity(engine: dict[str, Any], ask: Ask) -> dict[str, object]:
    """Compare the answers with those of the proved FP32 graph in ONNX Runtime on the CPU, within
    the tolerances of this task and precision."""
    from converters.proof.runner import onnx_runner
    from converters.proof.tolerance import tolerance

    rows = feed(engine["model"], PARITY_ROWS)
    reference = onnx_runner(Path(engine["files"]["reference"])).run(None, normalised(rows))[0]
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


def as_scored(name: str, outputs: np.ndarray) -> np.ndarray:
    """The values that the tolerances apply to, FP64: vectors as they are, logits as
    probabilities."""
    values = outputs.astype(np.float64)
    if name == "text_embedding":
        return values
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def milliseconds(call: Callable[[], Any], seconds: float) -> float:
    """The median time of a call, after a warm-up."""
    for _ in range(WARM_UP):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    return sorted(times)[len(times) // 2]


def served_rate(pool: Executor, address: str, request: bytes, seconds: float) -> float:
    """Responses/s with several client processes sending the same request back to back. A first,
    shorter pass warms up the batch sizes that Triton merges them to."""
    rate = 0.0
    for counted in (min(0.3, seconds), seconds):
        rate = sum(pool.map(_one_client, [(address, request, counted)] * CLIENTS))
    return rate


def _one_client(job: tuple[str, bytes, float]) -> float:
    """Responses/s of one process; the last ones are waited for, and counted."""
    import grpc

    address, request, seconds = job
    started = time.perf_counter()

    def send_until_end(_: int) -> int:
        with grpc.insecure_channel(address, options=OWN_CONNECTION) as channel:
            call, count = channel.unary_unary(INFER), 0
            while not count or time.perf_counter() < started + seconds:
                call(request, timeout=REQUEST_TIMEOUT_S)
                count += 1
        return count

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        responses = sum(threads.map(send_until_end, range(CONNECTIONS)))
    return responses / (time.perf_counter() - started)


def serialized(model: str, rows: dict[str, np.ndarray]) -> bytes:
    """A gRPC request with these rows."""
    from tritonclient.grpc import service_pb2
    from tritonclient.utils import np_to_triton_dtype

    request = service_pb2.ModelInferRequest(model_name=model)
    for name, array in rows.items():
        datatype = np_to_triton_dtype(array.dtype)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return bytes(request.SerializeToString())


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
        result = client.infer(model, inputs)
        return np.asarray(result.as_numpy(result.get_response().outputs[0].name))

    with grpc.InferenceServerClient(address) as client:
        yield ask


def in_process(
    engine: dict[str, Any], cpu: bool
) -> tuple[Ask, Callable[[Rows], Callable[[], object]]]:
    """The same engine in this process, on the same device: from arrays to arrays, and, for given
    rows, with inputs and outputs that stay on the device."""
    if engine["runs_on"] == "torch":
        ask = _torch(Path(engine["files"]["served"]) / "model.pt", "cpu" if cpu else "cuda")
        return ask, lambda rows: partial(ask, rows)
    import onnxruntime

    providers: list[Any] = ["CPUExecutionProvider"]
    if not cpu:
        from modelspec.hardware import CUDA_OPTIONS

        onnxruntime.preload_dlls(directory="")
        providers.insert(0, (CUDA, CUDA_OPTIONS))
    session = onnxruntime.InferenceSession(
        engine["files"]["onnx"], providers=providers, enable_fallback=0
    )
    if not cpu and CUDA not in session.get_providers():
        raise RuntimeError("CUDA did not start in ONNX Runtime: see its own message above")
    device = "cpu" if cpu else "cuda"

    def bound(rows: Rows) -> Callable[[], Any]:
        binding = session.io_binding()
        for name, array in rows.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(session.get_outputs()[0].name, device, 0)
        return partial(session.run_with_iobinding, binding)

    return lambda rows: np.asarray(session.run(None, rows)[0]), bound


def _torch(file: Path, device: str) -> Ask:
    import torch

    # FP32 stays FP32, as in ONNX Runtime.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    module: Any = torch.jit.load(str(file), map_location=device)  # type: ignore[no-untyped-call]

    def ask(rows: Rows) -> np.ndarray:
        with torch.inference_mode():
            output = module(*(torch.from_numpy(array).to(device) for array in rows.values()))
        return np.asarray(output.float().cpu().numpy())

    return ask
