"""How long requests wait in Triton, and how long it works on them, from its own statistics."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.errors import GatewayError
from gateway.upstream.replicas import Replica

_COMPUTE = ("compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class Totals:
    """Since Triton was started, of one model at one replica."""

    requests: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0


class TritonTimes:
    """Remembers the totals, to tell what came since."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, str], Totals] = {}  # (replica, model) -> its totals

    async def since_last(
        self, replicas: Sequence[Replica], models: Sequence[str]
    ) -> tuple[float, float]:
        """The seconds that a request waited, and was worked on, at these replicas since the last
        call, on average; for an ensemble, pass its steps. (0.0, 0.0) if that is not known."""
        queue_s = compute_s = 0.0
        for model in models:
            totals = await asyncio.gather(*(self._since(replica, model) for replica in replicas))
            requests = sum(total.requests for total in totals)
            if requests > 0:
                queue_s += sum(total.queue_s for total in totals) / requests
                compute_s += sum(total.compute_s for total in totals) / requests
        return queue_s, compute_s

    async def _since(self, replica: Replica, model: str) -> Totals:
        try:
            response = await replica.upstream.describe("ModelStatistics", model)
        except GatewayError:
            return Totals()
        key = replica.address, model
        before = self._before.get(key)
        now = self._before[key] = _totals(response)
        if before is None or now.requests < before.requests:  # or it was started again
            return Totals()
        return Totals(
            now.requests - before.requests,
            now.queue_s - before.queue_s,
            now.compute_s - before.compute_s,
        )


def _totals(response: object) -> Totals:
    requests, queue_ns, compute_ns = 0, 0, 0
    for model in response.model_stats:  # type: ignore[attr-defined]
        statistics = model.inference_stats
        requests += statistics.queue.count
        queue_ns += statistics.queue.ns
        compute_ns += sum(getattr(statistics, part).ns for part in _COMPUTE)
    return Totals(requests, queue_ns / 1e9, compute_ns / 1e9)
