"""Closed loop: so many connections, each with one request under way, for so many seconds.

Over gRPC, as latency-sensitive clients call Triton, with requests that were serialised beforehand:
what is left of the client is small beside the server, and its own CPU time is measured.
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
# The part of a pass that comes before what is counted: at first every connection waits for its
# first answer, and a slow setting would be made slower by that.
LEAD_IN = 0.25
# Else gRPC joins channels to one address into one connection.
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))


@dataclass(frozen=True)
class Load:
    """``requests`` are serialised ModelInferRequests, sent in turn; ``seconds`` are counted, after
    a lead-in."""

    requests: Sequence[bytes]
    connections: int
    seconds: float


@dataclass
class Pass:
    """What one pass saw: the answers that came within its ``seconds``. ``generator_cores`` is the
    CPU time of the client by wall time."""

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
    """Several passes of one setting together: answers a second, latencies in milliseconds."""

    rps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    requests: int
    generator_cores: float


def run(address: str, load: Load) -> Pass:
    """One pass against the server at ``address``; failed requests are counted, not raised."""
    return asyncio.run(_run(address, load))


def together(passes: Sequence[Pass]) -> Figures:
    """The figures of passes; ServingError when one of them had no answer: there is nothing then
    that could be said of it."""
    if not all(each.latencies_ms for each in passes):
        raise ServingError("no request was answered within a pass: try fewer connections")
    latencies = np.concatenate([np.array(each.latencies_ms) for each in passes])
    seconds = sum(each.seconds for each in passes)
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    cores = sum(each.generator_cores * each.seconds for each in passes) / seconds
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
    found = Pass()
    started, cpu = time.perf_counter(), time.process_time()
    since = started + LEAD_IN * load.seconds
    counted = (since, since + load.seconds)
    await asyncio.gather(
        *(_ask(channel, load, first, counted, found) for first, channel in enumerate(channels))
    )
    found.seconds = load.seconds
    found.generator_cores = (time.process_time() - cpu) / (time.perf_counter() - started)
    return found


async def _ask(
    channel: grpc.aio.Channel, load: Load, first: int, counted: tuple[float, float], found: Pass
) -> None:
    """One connection: each begins elsewhere in the requests, so that their mix is even."""
    call, index = channel.unary_unary(INFER), first
    since, until = counted
    while (begun := time.perf_counter()) < until:
        try:
            await call(load.requests[index % len(load.requests)], timeout=REQUEST_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            found.errors += 1
            found.first_error = found.first_error or " ".join(str(error.details()).split())[:300]
            await asyncio.sleep(0.01)  # a server that refuses at once is not to be hammered
        else:
            ended = time.perf_counter()
            if since <= ended < until:
                found.latencies_ms.append((ended - begun) * 1e3)
        index += load.connections
