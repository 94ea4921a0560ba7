"""Background work: reload keys, read the catalogue, probe each pipeline with its golden sample.

Triton's own readiness says 200 while a model's process is dead; an answer that is right does not.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from tritonclient.grpc import service_pb2

from gateway.balancing import Health
from gateway.core import Gateway
from gateway.errors import DeadlineExceeded, GatewayError, NoCapacity
from gateway.http.exchange import Exchange
from gateway.limits.limiter import BEAT_S
from gateway.models.catalogue import Model
from gateway.models.face import Face
from gateway.models.rows import batches
from gateway.models.tensors import unpack
from gateway.replicas import CHECK_S, Replica
from gateway.supervision import STALL_S, every
from gateway.upstream import Upstream, request_id
from modelspec.golden import Golden

log = logging.getLogger("gateway")
GUARD_S = 0.25  # a revoked key is refused within a second
PROBE_TIMEOUT_S = 5.0
# A probe may come to stand behind requests, each as long as a deadline lets it be: so long after
# its last answer a model may be silent.
BUSY_S = 15.0
STALE_S = 5.0  # how old the catalogue may be


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
        self._keep("replicas", CHECK_S, self.check_replicas)
        self._keep("catalogue", settings.refresh_s, self.refresh_catalogue)
        self._keep("probes", settings.probe_s, self.probe)

    def _keep(self, name: str, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        def rounds() -> Awaitable[None]:
            return every(seconds, work, lambda: task.beat(), lambda why: task.failed(why))

        task = self.gateway.supervisor.run(name, rounds, stall_s=STALL_S + seconds)

    async def refresh_guard(self) -> None:
        if self.gateway.guard.refresh():
            self.gateway.follow_policy()

    async def check_replicas(self) -> None:
        """Which replicas are there; to be called once before the catalogue is first read."""
        gateway = self.gateway
        await gateway.pool.check()
        gateway.metrics.show_replicas(gateway.pool.replicas)
        gateway.open_sequences.sweep()

    async def refresh_catalogue(self) -> None:
        gateway = self.gateway
        before = gateway.reader.faults
        try:
            gateway.catalogue = await gateway.reader.read(gateway.pool.replicas)
        except GatewayError:
            return  # ``outage`` says so after a while; the last catalogue stays
        for model, fault in gateway.reader.faults.items():
            if before.get(model) != fault:
                log.error("model %s is not shown: %s", model, fault)

    async def probe(self) -> None:
        """Ask every pipeline of every replica that can be asked."""
        gateway = self.gateway
        faced = {m.name for m in gateway.catalogue.models.values() if m.face}
        names = set(gateway.settings.pipelines) | faced
        found = dict(await asyncio.gather(*(self._probed(name) for name in sorted(names))))
        for name, fault in found.items():
            if gateway.probes.get(name) != fault:
                log.info("pipeline %s: %s", name, shown_state(gateway, name, fault))
        gateway.probes = found

    async def _probed(self, name: str) -> tuple[str, str]:
        """The pipeline, and '' if one replica at least answers rightly, else what is wrong."""
        model = self.gateway.catalogue.models.get(name)
        if model is None:
            return name, "is not being served"
        asked = [r for r in self.gateway.pool.replicas if r.health and r.serves(name)]
        if not asked:
            return name, "is served by no replica that answers"
        faults = await asyncio.gather(*(self._probed_at(replica, model) for replica in asked))
        if not all(faults):
            return name, ""
        return name, faults[0]  # clients see it: which replica it is stands in the log

    async def _probed_at(self, replica: Replica, model: Model) -> str:
        before, sent = replica.probes.get(model.name), time.monotonic()
        # What Triton says of a failure is logged when it is new, not every second.
        request_id.set("" if before else f"probe-of-{model.name}")
        fault, is_late = await self._ask_golden(replica, model)
        if is_late and before is not None and self._is_busy(replica, model, sent):
            return before
        if fault and fault != before:
            log.warning("replica %s: pipeline %s %s", replica.place, model.name, fault)
        replica.probes[model.name] = fault
        return fault

    async def _ask_golden(self, replica: Replica, model: Model) -> tuple[str, bool]:
        """'' or what is wrong, and whether that is only that there was no answer in time, or that
        it was refused for want of room."""
        if model.golden_fault:
            return model.golden_fault, False
        try:
            # No permit: a full server is probed too. Nor does the answer name a model to the
            # replica: it is no sign that clients have theirs.
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                if model.face is None or model.golden is None:
                    return await _sign_of_life(replica.upstream, model), False
                answer = await golden_answer(
                    replica.upstream, model, model.face, model.golden, PROBE_TIMEOUT_S
                )
            replica.ended("", None)
            return model.golden.fault(answer), False
        except (GatewayError, TimeoutError) as error:
            replica.ended("", error)
            is_late = isinstance(error, TimeoutError | DeadlineExceeded | NoCapacity)
            why = str(error) or "no answer in time"
            return f"does not answer its golden sample ({why})", is_late

    def _is_busy(self, replica: Replica, model: Model, sent: float) -> bool:
        """Load is not death: whether the model answered anything there since the probe was sent,
        or not so long ago that it could not be working on what came before the probe."""
        return replica.health is Health.UP and (
            replica.answered.get(model.name, 0.0) > sent - BUSY_S
        )


async def _sign_of_life(upstream: Upstream, model: Model) -> str:
    """Of a model that cannot be proved: what is wrong as far as the server itself shows it."""
    found = await upstream.describe("ModelReady", model.name)
    if not found.ready:
        return "is not ready"
    if model.decoupled and not await upstream.stream_ends.answers():
        return "cannot be asked: streams to its server are not answered"
    return ""


async def golden_answer(
    upstream: Upstream, model: Model, face: Face, golden: Golden, timeout_s: float
) -> Mapping[str, list[Any]]:
    """What the model answers to its golden request: each output's values, in one flat list.

    The answers of a decoupled model are joined, as far as the sample expects something of them.
    """
    message = batches(model, face, [golden.request])[0].message
    answer: dict[str, list[Any]] = {}
    if not model.decoupled:
        _join(answer, await upstream.infer(message, timeout_s))
        return answer
    async with aclosing(upstream.stream(message, timeout_s, timeout_s)) as found:
        async for each in found:
            _join(answer, each)
            if golden.is_answered(answer):
                break
    return answer


def _join(answer: dict[str, list[Any]], response: service_pb2.ModelInferResponse) -> None:
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        values = unpack(output.datatype, [-1], raw).tolist()
        answer.setdefault(output.name, []).extend(values)


def outage(gateway: Gateway) -> str:
    """Why nothing at all can be served, or ''."""
    if not any(replica.health for replica in gateway.pool.replicas):
        return "no Triton server can be asked"
    if time.monotonic() - gateway.reader.read_at > STALE_S and not _is_only_late(gateway):
        return f"no Triton server has said for {STALE_S:.0f} s what it serves"
    return "" if gateway.catalogue.models else "no model is being served"


def _is_only_late(gateway: Gateway) -> bool:
    """Load is not death: whether a server that has no time to say what it serves answers other
    questions, and there is a catalogue of before to ask them by."""
    since = time.monotonic() - BUSY_S
    return gateway.reader.is_waiting and any(
        each.health is Health.UP and each.last_answer > since for each in gateway.pool.replicas
    )


def readiness(gateway: Gateway) -> dict[str, str]:
    """Each pipeline that must be ready, and '' or what is wrong with it; what is wrong with each
    background task that is down; and an ``outage``, where there is one."""
    found = {
        name: gateway.probes.get(name, "has not been probed yet")
        for name in gateway.settings.pipelines
    }
    for task, fault in gateway.supervisor.faults().items():
        found[f"background:{task}"] = fault
    nothing_served = outage(gateway)
    return found | ({"tidegate:replicas": nothing_served} if nothing_served else {})


def readable_readiness(gateway: Gateway, exchange: Exchange) -> dict[str, str]:
    """As ``readiness``, of the pipelines that the caller may read; the gateway's own troubles have
    a colon in their names, and are everybody's."""
    found = readiness(gateway)
    return {name: f for name, f in found.items() if ":" in name or exchange.may_read(name)}


def shown_state(gateway: Gateway, name: str, fault: str) -> str:
    """'ready' only where there is evidence: a pipeline without a golden sample that was answered is
    'unproved', which does not keep the gateway from being ready."""
    model = gateway.catalogue.models.get(name)
    return fault or ("ready" if model and model.golden else "unproved")
