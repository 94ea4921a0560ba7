"""Closed loop: a number of connections, each with one request under way, for some seconds.

Over gRPC, as latency-sensitive clients call Triton, with requests serialized beforehand: the
client's cost is small compared with the server's, and its own CPU time is measured.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np

from serving.errors import ServingError

INFER = "/inference.GRPCInferenceService/ModelInfer"
CONNECT_TIMEOUT_S = 20.0
REQUEST_TIMEOUT_S = 60.0
# The warm-up of a pass, as a share of its counted seconds: at first every connection waits for its
# first response, which would make a slow setting look slower still.
LEAD_IN = 0.25
# Otherwise gRPC merges channels to one address into one connection.
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))


@dataclass(frozen=True)
class Load:
    """``requests`` are serialized ModelInferRequests, sent in turn; ``seconds`` are counted, after
    a lead-in."""

    requests: Sequence[bytes]
    connections: int
    seconds: float


@dataclass
class Pass:
    """What one pass measured: the responses within its ``seconds``. ``generator_cores`` is the
    client's CPU time divided by wall time."""

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    errors: int = 0
    first_error: str = ""
    generator_cores: float = 0.0

    @property
    def rps(self) -> float:
        return len(self.latencies_ms) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Figures:
    """Several passes of one setting, merged: responses per second, latencies in milliseconds."""

    rps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    requests: int
    generator_cores: float


def run(address: str, load: Load) -> Pass:
    """Run one pass against the server at ``address``; failed requests are counted, not raised."""
    return asyncio.run(_run(address, load))


def merged(passes: Sequence[Pass]) -> Figures:
    """The merged figures of several passes; ServingError if one of them had no responses."""
    if not all(measured.latencies_ms for measured in passes):
        raise ServingError("no request was answered within a pass: try fewer connections")
    latencies = np.concatenate([np.array(measured.latencies_ms) for measured in passes])
    seconds = sum(measured.seconds for measured in passes)
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    cores = sum(measured.generator_cores * measured.seconds for measured in passes) / seconds
    return Figures(
        rps=round(len(latencies) / seconds, 1),
        p50_ms=round(float(p50), 2),
        p95_ms=round(float(p95), 2),
        p99_ms=round(float(p99), 2),
        requests=len(latencies),
        generator_cores=round(cores, 3),
    )


async def _run(address: str, load: Load) -> Pass:
    channels = [
        grpc.aio.insecure_channel(address, options=OWN_CONNECTION) for _ in range(load.connections)
    ]
    try:
        ready = asyncio.gather(*(channel.channel_ready() for channel in channels))
        await asyncio.wait_for(ready, CONNECT_TIMEOUT_S)
        return await _timed(channels, load)
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def _timed(channels: Sequence[grpc.aio.Channel], load: Load) -> Pass:
    result = Pass()
    started, cpu = time.perf_counter(), time.process_time()
    begin = started + LEAD_IN * load.seconds
    window = (begin, begin + load.seconds)
    await asyncio.gather(
        *(
            _send_requests(channel, load, first, window, result)
            for first, channel in enumerate(channels)
        )
    )
    result.seconds = load.seconds
    result.generator_cores = (time.process_time() - cpu) / (time.perf_counter() - started)
    return result


async def _send_requests(
    channel: grpc.aio.Channel, load: Load, first: int, window: tuple[float, float], result: Pass
) -> None:
    """One connection. Each starts at a different request, so that their mix is even."""
    call, index = channel.unary_unary(INFER), first
    begin, end = window
    while (sent := time.perf_counter()) < end:
        try:
            await call(load.requests[index % len(load.requests)], timeout=REQUEST_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            result.errors += 1
            result.first_error = result.first_error or " ".join(str(error.details()).split())[:300]
            await asyncio.sleep(0.01)  # do not hammer a server that refuses at once
        else:
            received = time.perf_counter()
            if begin <= received < end:
                result.latencies_ms.append((received - sent) * 1e3)
        index += load.connections
