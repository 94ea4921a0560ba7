"""Background work: reload keys, read the catalogue, probe each pipeline with its golden sample.

Triton's own readiness says 200 while a model's process is dead; an answer that is right does not.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np

from gateway.core import Gateway
from gateway.errors import GatewayError
from gateway.limits.limiter import BEAT_S
from gateway.models.rows import Tensors
from gateway.supervision import STALL_S, every

log = logging.getLogger("gateway")
GUARD_S = 0.25  # a revoked key is refused within a second
PROBE_TIMEOUT_S = 5.0


class Background:
    """The gateway's loops, each a task of its supervisor."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def start(self) -> None:
        """Until the supervisor is closed."""
        settings, guard = self.gateway.settings, self.gateway.guard
        self._keep("rules", GUARD_S, self.refresh_guard)
        self._keep("rights", GUARD_S, guard.check_streams)
        self._keep("limits", BEAT_S, guard.limiter.beat)
        self._keep("catalogue", settings.refresh_s, self.refresh_catalogue)
        self._keep("probes", settings.probe_s, self.probe)

    def _keep(self, name: str, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        def rounds() -> Awaitable[None]:
            return every(seconds, work, lambda: task.beat())

        task = self.gateway.supervisor.run(name, rounds, stall_s=STALL_S + seconds)

    async def refresh_guard(self) -> None:
        if self.gateway.guard.refresh():
            self.gateway.follow_policy()

    async def refresh_catalogue(self) -> None:
        gateway = self.gateway
        before = gateway.reader.faults
        try:
            gateway.catalogue = await gateway.reader.read(gateway.pool.first)
        except GatewayError:
            return  # the probes say that it does not answer; the last catalogue stays
        for model, fault in gateway.reader.faults.items():
            if before.get(model) != fault:
                log.error("model %s is not shown: %s", model, fault)

    async def probe(self) -> None:
        gateway = self.gateway
        faced = {m.name for m in gateway.catalogue.models.values() if m.face}
        names = set(gateway.settings.pipelines) | faced
        found = dict(await asyncio.gather(*(self._probed(name) for name in sorted(names))))
        for name, fault in found.items():
            if gateway.probes.get(name) != fault:
                log.info("pipeline %s: %s", name, fault or "answers its golden probe")
        gateway.probes = found

    async def _probed(self, name: str) -> tuple[str, str]:
        model = self.gateway.catalogue.models.get(name)
        if model is None:
            return name, "is not being served"
        if model.face is None or model.golden is None:
            return name, ""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                rows = [model.golden["request"]]
                answers = await self.gateway.rows(model, model.face, rows, PROBE_TIMEOUT_S)
                fault = golden_fault(model.golden, *answers[0])
        except (GatewayError, TimeoutError) as error:
            fault = f"does not answer its golden probe ({error or 'timeout'})"
        return name, fault


def golden_fault(golden: Mapping[str, Any], tensors: Tensors, index: int) -> str:
    """'' when the row's first elements are the golden ones, else which tensor differs."""
    for name, wanted in golden["expect"].items():
        if name not in tensors:
            return f"answers without the tensor {name}"
        got = tensors[name][index].reshape(-1)[: len(wanted)]
        if got.dtype == object:
            right = [value.decode("utf-8", "replace") for value in got] == wanted
        else:
            right = len(got) == len(wanted) and bool(
                np.allclose(got, wanted, rtol=0, atol=golden["tolerance"])
            )
        if not right:
            return f"answers its golden probe wrongly in {name}"
    return ""


def readiness(gateway: Gateway) -> dict[str, str]:
    """Each pipeline that must be ready, and '' or what is wrong with it; and what is wrong with
    each background task that is down."""
    pipelines = {
        name: gateway.probes.get(name, "has not been probed yet")
        for name in gateway.settings.pipelines
    }
    faults = gateway.supervisor.faults()
    return pipelines | {f"background:{name}": fault for name, fault in faults.items()}
