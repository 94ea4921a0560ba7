"""Background work: reload keys, read the catalogue, probe each pipeline with its golden sample.

Triton's own readiness says 200 while a model's process is dead; an answer that is right does not.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from gateway.core import Gateway
from gateway.errors import DeadlineExceeded, GatewayError, NoCapacity
from gateway.http.request_context import RequestContext
from gateway.limits.limiter import BEAT_S
from gateway.models.catalogue import Model
from gateway.models.endpoint_schema import EndpointSchema
from gateway.models.rows import batches
from gateway.models.tensors import unpack
from gateway.supervision import STALL_S, every
from gateway.upstream.balancing import Health
from gateway.upstream.replicas import CHECK_S, Replica
from gateway.upstream.server import Upstream, request_id
from modelspec.golden import LEAST_PROBE_S, Golden, probe_time_s

log = logging.getLogger("gateway")
GUARD_S = 0.25  # a revoked key is refused within a second
LATE_S = LEAST_PROBE_S  # so long after it was asked, a model that has not answered is judged
# A probe may come to stand behind requests, each as long as a deadline lets it be: so long a model
# may complete nothing, or as long as the deadline, if that is longer.
BUSY_S, LONGEST_BUSY_S = 15.0, 60.0
_NO_ANSWER = "does not answer its golden sample"
STALE_S = 5.0  # how old the catalogue may be


@dataclass
class _Watched:
    """One pipeline at one replica: the question that is under way, and what the model completes."""

    since: float = 0.0
    task: asyncio.Task[None] | None = None
    took_s: float | None = None  # of its last right answer
    counts: tuple[int, ...] = ()
    moved: float = 0.0  # when the counts were last seen to have changed
    has_moved: bool = False  # whether they were since it was last silent
    is_silent: bool = False  # what is wrong with it is only that it is late, and completes nothing


class Background:
    """The gateway's loops, each a task of its supervisor."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._watched: dict[tuple[str, str], _Watched] = {}

    def start(self) -> None:
        """Until the supervisor is closed."""
        settings, access_control = self.gateway.settings, self.gateway.access_control
        self._keep("rules", GUARD_S, self.refresh_access_control)
        self._keep("rights", GUARD_S, access_control.check_streams)
        self._keep("limits", BEAT_S, access_control.limiter.heartbeat)
        self._keep("replicas", CHECK_S, self.check_replicas)
        self._keep("catalogue", settings.refresh_s, self.refresh_catalogue)
        self._keep("probes", settings.probe_s, self.probe, self._end_probes)

    def _keep(
        self,
        name: str,
        seconds: float,
        work: Callable[[], Awaitable[None]],
        end: Callable[[], None] = lambda: None,
    ) -> None:
        async def rounds() -> None:
            try:
                await every(seconds, work, lambda: task.heartbeat(), lambda why: task.failed(why))
            finally:
                end()

        task = self.gateway.supervisor.run(name, rounds, stall_s=STALL_S + seconds)

    async def refresh_access_control(self) -> None:
        if self.gateway.access_control.refresh():
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
        """Ask every pipeline of every replica that can be asked, and judge what has answered.

        One that is late holds up nobody: it is asked on while the others are asked again. A round
        takes ``LATE_S`` and what Triton's statistics take, at most.
        """
        gateway = self.gateway
        faced = {m.name for m in gateway.catalogue.models.values() if m.endpoint_schema}
        names = sorted(set(gateway.settings.pipelines) | faced)
        asked = [self._begun(r, gateway.catalogue.models[n]) for n in names for r in self._at(n)]
        begun = [task for task in asked if task]
        if begun:
            await asyncio.wait(begun, timeout=LATE_S)
        found = dict(await asyncio.gather(*(self._judged(name) for name in names)))
        for name, fault in found.items():
            if gateway.probes.get(name) != fault:
                log.info("pipeline %s: %s", name, shown_state(gateway, name, fault))
        gateway.probes = found
        there = {(r.place, name) for r in gateway.pool.replicas for name in names}
        for gone in set(self._watched) - there:
            self._end_probe(self._watched.pop(gone))

    def _end_probes(self) -> None:
        for watched in self._watched.values():
            self._end_probe(watched)
        self._watched = {}

    def _end_probe(self, watched: _Watched) -> None:
        if watched.task:
            watched.task.cancel()

    def _at(self, name: str) -> list[Replica]:
        """The replicas that can be asked."""
        if name not in self.gateway.catalogue.models:
            return []
        return [r for r in self.gateway.pool.replicas if r.health and r.serves(name)]

    def _begun(self, replica: Replica, model: Model) -> asyncio.Task[None] | None:
        """A new question, where none is under way."""
        watched = self._watched.setdefault((replica.place, model.name), _Watched())
        if watched.task and not watched.task.done():
            return None
        watched.since = time.monotonic()
        watched.moved = watched.moved or watched.since
        watched.task = asyncio.create_task(self._ask(replica, model, watched))
        return watched.task

    async def _judged(self, name: str) -> tuple[str, str]:
        """The pipeline, and '' if one replica at least answers rightly, else what is wrong."""
        model = self.gateway.catalogue.models.get(name)
        if model is None:
            return name, "is not being served"
        asked = self._at(name)
        if not asked:
            return name, "is served by no replica that answers"
        faults = await asyncio.gather(*(self._judged_at(replica, model) for replica in asked))
        if not all(faults):
            return name, ""
        return name, faults[0]  # clients see it: which replica it is stands in the log

    async def _judged_at(self, replica: Replica, model: Model) -> str:
        """What the replica's last answer was. One that is late is judged by what it completes."""
        watched = self._watched.get((replica.place, model.name))
        is_asked = watched is not None and watched.task and not watched.task.done()
        if watched is not None and is_asked and time.monotonic() - watched.since >= LATE_S:
            await self._judge_late(replica, model, watched, f"{_NO_ANSWER} in time")
        return replica.probes.get(model.name, "is being asked its first golden sample")

    async def _ask(self, replica: Replica, model: Model, watched: _Watched) -> None:
        before = replica.probes.get(model.name)
        # What Triton says of a failure is logged when it is new, not every second.
        request_id.set("" if before else f"probe-of-{model.name}")
        fault, is_late = await self._ask_golden(replica, model, probe_time_s(watched.took_s))
        if is_late:
            await self._judge_late(replica, model, watched, fault)
            return
        watched.is_silent = False
        if not fault:
            watched.took_s = time.monotonic() - watched.since
        _found(replica, model, fault)

    async def _judge_late(
        self, replica: Replica, model: Model, watched: _Watched, why: str
    ) -> None:
        """Load is not death: as long as the model completes anything it is what its last answer
        said, and one that never answered is well."""
        before = replica.probes.get(model.name)
        is_busy = await self._is_busy(replica, model, watched)
        if before and not watched.is_silent:
            return  # a wrong answer: only another one says more
        if not is_busy:
            watched.is_silent, watched.has_moved = True, False
            if not before:
                _found(replica, model, why)
        elif watched.has_moved or before == "":
            replica.probes[model.name] = ""

    async def _ask_golden(
        self, replica: Replica, model: Model, timeout_s: float
    ) -> tuple[str, bool]:
        """'' or what is wrong, and whether that is only that there was no answer in time, or that
        it was refused for want of room."""
        if model.golden_fault:
            return model.golden_fault, False
        try:
            # No permit: a full server is probed too. Nor does the answer name a model to the
            # replica: it is no sign that clients have theirs.
            async with asyncio.timeout(timeout_s):
                if model.endpoint_schema is None or model.golden is None:
                    return await _sign_of_life(replica.upstream, model), False
                answer = await golden_answer(
                    replica.upstream, model, model.endpoint_schema, model.golden, timeout_s
                )
            replica.ended("", None)
            return model.golden.fault(answer), False
        except (GatewayError, TimeoutError) as error:
            replica.ended("", error)
            is_late = isinstance(error, TimeoutError | DeadlineExceeded | NoCapacity)
            why = f" ({error})" if str(error) else " in time"
            return _NO_ANSWER + why, is_late

    async def _is_busy(self, replica: Replica, model: Model, watched: _Watched) -> bool:
        """Whether the model, or a step of it, has completed anything there not so long ago: for a
        client of ours, or by Triton's own count for anybody. One that was never looked at may have
        done so."""
        now = time.monotonic()
        if replica.health is not Health.UP:
            return False
        counts = await _completed(replica.upstream, (model.name, *model.steps))
        if counts != watched.counts:
            watched.has_moved = watched.has_moved or bool(watched.counts)
            watched.moved = now
            watched.counts = counts or watched.counts
        answered = replica.answered.get(model.name, 0.0)
        watched.has_moved = watched.has_moved or answered > watched.since
        silent_s = min(max(BUSY_S, self.gateway.settings.deadline_s), LONGEST_BUSY_S)
        return now - max(watched.moved, answered) < silent_s


def _found(replica: Replica, model: Model, fault: str) -> None:
    if fault and fault != replica.probes.get(model.name):
        log.warning("replica %s: pipeline %s %s", replica.place, model.name, fault)
    replica.probes[model.name] = fault


async def _completed(upstream: Upstream, names: Iterable[str]) -> tuple[int, ...]:
    """How many requests of these models Triton has completed, rightly or not; () of a server that
    does not say."""
    try:
        found = [await upstream.describe("ModelStatistics", name) for name in names]
    except GatewayError:
        return ()
    stats = [each for answer in found for each in answer.model_stats]
    counts = [(s.inference_stats.success.count, s.execution_count) for s in stats]
    return tuple(count for pair in counts for count in pair)


async def _sign_of_life(upstream: Upstream, model: Model) -> str:
    """Of a model that cannot be proved: what is wrong as far as the server itself shows it."""
    found = await upstream.describe("ModelReady", model.name)
    if not found.ready:
        return "is not ready"
    if model.decoupled and not await upstream.stream_ends.answers():
        return "cannot be asked: streams to its server are not answered"
    return ""


async def golden_answer(
    upstream: Upstream,
    model: Model,
    endpoint_schema: EndpointSchema,
    golden: Golden,
    timeout_s: float,
) -> Mapping[str, list[Any]]:
    """What the model answers to its golden request: each output's values, in one flat list.

    The answers of a decoupled model are joined, as far as the sample expects something of them.
    """
    message = batches(model, endpoint_schema, [golden.request])[0].message
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


def readable_readiness(gateway: Gateway, context: RequestContext) -> dict[str, str]:
    """As ``readiness``, of the pipelines that the caller may read; the gateway's own troubles have
    a colon in their names, and are everybody's."""
    found = readiness(gateway)
    return {name: f for name, f in found.items() if ":" in name or context.may_read(name)}


def shown_state(gateway: Gateway, name: str, fault: str) -> str:
    """'ready' only where there is evidence: a pipeline without a golden sample that was answered is
    'unproved', which does not keep the gateway from being ready."""
    model = gateway.catalogue.models.get(name)
    return fault or ("ready" if model and model.golden else "unproved")
