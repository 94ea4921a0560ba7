"""How long requests wait in Triton, and how long it works on them, from its own statistics."""

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.errors import GatewayError
from gateway.upstream.replicas import Replica

STALE_S = 5.0  # totals that were read longer ago are no beginning for an average
LATE_S = 1.0  # those that take longer are left out: one that hangs delays no other's
_COMPUTE = ("compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class Totals:
    """Since Triton was started, of one model at one replica."""

    requests: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0


Deltas = Mapping[tuple[str, str], Totals]


class TritonTimes:
    """Remembers the totals, to tell what came since."""

    def __init__(self) -> None:
        # (replica's address, model) -> when they were read, monotonic seconds, and its totals
        self._before: dict[tuple[str, str], tuple[float, Totals]] = {}

    async def read(self, wanted: Iterable[tuple[Replica, str]], now: float) -> Deltas:
        """What each of these models at these replicas did since the last call. A model that several
        pipelines share is read once, for all of them."""
        pairs = {(replica.address, model): replica for replica, model in wanted}
        totals = await asyncio.gather(
            *(_read(replica, model) for (_, model), replica in pairs.items())
        )
        deltas = {}
        for key, current in zip(pairs, totals, strict=True):
            read_at, before = self._before.get(key, (-math.inf, Totals()))
            if current is None:
                continue
            self._before[key] = now, current
            # Not what came in a long pause, nor after Triton was started again.
            if now - read_at < STALE_S and current.requests >= before.requests:
                deltas[key] = Totals(
                    current.requests - before.requests,
                    current.queue_s - before.queue_s,
                    current.compute_s - before.compute_s,
                )
        return deltas


def for_each_request(
    deltas: Deltas, replicas: Sequence[Replica], models: Sequence[str]
) -> tuple[float, float]:
    """The seconds that a request waited, and was worked on, at these replicas on average; of an
    ensemble, pass the steps. (0.0, 0.0) if that is not known."""
    queue_s = compute_s = 0.0
    for model in models:
        totals = [
            deltas[replica.address, model]
            for replica in replicas
            if (replica.address, model) in deltas
        ]
        requests = sum(total.requests for total in totals)
        if requests > 0:
            queue_s += sum(total.queue_s for total in totals) / requests
            compute_s += sum(total.compute_s for total in totals) / requests
    return max(0.0, queue_s), max(0.0, compute_s)


async def _read(replica: Replica, model: str) -> Totals | None:
    try:
        async with asyncio.timeout(LATE_S):
            return _totals(await replica.upstream.describe("ModelStatistics", model))
    except (GatewayError, TimeoutError):
        return None


def _totals(response: object) -> Totals:
    requests, queue_ns, compute_ns = 0, 0, 0
    for model in response.model_stats:  # type: ignore[attr-defined]
        statistics = model.inference_stats
        requests += statistics.queue.count
        queue_ns += statistics.queue.ns
        compute_ns += sum(getattr(statistics, part).ns for part in _COMPUTE)
    return Totals(requests, queue_ns / 1e9, compute_ns / 1e9)
