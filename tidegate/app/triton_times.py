"""Triton's own timing: queue and compute time per request, step by step."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.errors import ServingError

TIMEOUT_S = 5


@dataclass(frozen=True)
class StepTimes:
    """Mean milliseconds per request; ``batch`` is the mean number of rows per execution."""

    queue_ms: float
    compute_ms: float
    batch: float


@contextlib.contextmanager
def measured(address: str, models: Sequence[str]) -> Iterator[dict[str, StepTimes]]:
    """A dict that is filled when the block ends, with the times of the requests made in it."""
    times: dict[str, StepTimes] = {}
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        before = {model: _counters(stub, address, model) for model in models}
        yield times
        for model in models:
            times[model] = _difference(before[model], _counters(stub, address, model))


def _counters(stub: Any, address: str, model: str) -> list[int]:
    """Requests, queue ns, compute ns, rows, executions, summed over the versions."""
    request = service_pb2.ModelStatisticsRequest(name=model)
    try:
        stats = stub.ModelStatistics(request, timeout=TIMEOUT_S).model_stats
    except grpc.RpcError as error:
        raise ServingError(f"no Triton answers at {address}: start it with `make up`") from error
    rows = [
        (
            version.inference_stats.success.count,
            version.inference_stats.queue.ns,
            version.inference_stats.compute_input.ns
            + version.inference_stats.compute_infer.ns
            + version.inference_stats.compute_output.ns,
            version.inference_count,
            version.execution_count,
        )
        for version in stats
    ]
    return [sum(column) for column in zip(*rows, strict=True)]


def _difference(before: list[int], after: list[int]) -> StepTimes:
    count, queue, compute, rows, executions = (b - a for a, b in zip(before, after, strict=True))
    return StepTimes(
        round(queue / max(count, 1) / 1e6, 3),
        round(compute / max(count, 1) / 1e6, 3),
        round(rows / max(executions, 1), 2),
    )
