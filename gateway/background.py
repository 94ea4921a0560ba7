"""Background work: reload keys, read the catalogue, probe each pipeline with its golden sample.

Triton's own readiness endpoint returns 200 while a model's process is dead; only a correct response
proves that the model works.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from gateway.core import Gateway
from gateway.draining import DRAIN
from gateway.errors import DeadlineExceeded, GatewayError, NoCapacity
from gateway.http.request_context import RequestContext
from gateway.limits.limiter import HEARTBEAT_S
from gateway.models.catalogue import Model
from gateway.supervision import STALL_S, every
from gateway.upstream.admission import BATCH_SHARE, MEASURE_S, ONE_BY_ONE, Waiting
from gateway.upstream.balancing import Health
from gateway.upstream.replica_sources import LOOK_S
from gateway.upstream.replicas import CHECK_S, CHECK_TIMEOUT_S, ROUND_S, Replica
from gateway.upstream.server import Upstream
from gateway.upstream.triton_errors import request_id
from gateway.upstream.triton_times import TritonTimes, for_each_request
from modelspec.golden import LEAST_PROBE_S, probe_time_s
from modelspec.probe import Probe, ProbeResponse

log = logging.getLogger("gateway")
ACCESS_CHECK_S = 0.25  # a revoked key is refused within a second
LATE_S = LEAST_PROBE_S  # a probe without a response for this long counts as late
# A probe may queue behind requests, each of which may take as long as its deadline. A model may
# therefore complete nothing for BUSY_S, or for the deadline if that is longer.
BUSY_S, LONGEST_BUSY_S = 15.0, 60.0
# A probe that takes longer than this, as a language model's does, is not sent in every round: so
# many times as long must pass between two, but no more than LATE_S, within which a fault is found.
SLOW_PROBE_S, PAUSES = 0.05, 50
ANSWERS = "answers its golden sample"  # so begins what is wrong with an answer, not what is late
_NO_RESPONSE = "does not answer its golden sample"
STALE_S = 5.0  # the greatest age of the catalogue


@dataclass
class _Probe:
    """The probing of one pipeline at one replica: the probe in flight, and the model's progress."""

    since: float = 0.0  # when the last probe was sent, monotonic seconds
    task: asyncio.Task[None] | None = None
    took_s: float | None = None  # the duration of the last one that was answered correctly
    right_as_of: float = 0.0  # when that was sent, monotonic seconds
    counts: tuple[int, ...] = ()  # of completed requests
    moved: float = 0.0  # when the counts were last seen to change, monotonic seconds
    has_moved: bool = False  # whether they have changed since the model was last silent
    is_silent: bool = False  # its only fault is that it is late and completes nothing

    @property
    def is_pending(self) -> bool:
        return self.task is not None and not self.task.done()

    @property
    def pause_s(self) -> float:
        """The least time from one probe to the next, after one that was answered correctly."""
        took_s = self.took_s or 0.0
        return min(PAUSES * took_s, LATE_S) if took_s > SLOW_PROBE_S else 0.0


class Background:
    """The gateway's background loops, each a task of its supervisor."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._probes: dict[tuple[str, str], _Probe] = {}
        self._triton_times = TritonTimes()

    def start(self) -> None:
        """Run the loops until the supervisor is closed."""
        settings, access_control = self.gateway.settings, self.gateway.access_control
        self._repeat("rules", ACCESS_CHECK_S, self.refresh_access_control)
        self._repeat("rights", ACCESS_CHECK_S, access_control.check_streams)
        self._repeat("limits", HEARTBEAT_S, access_control.limiter.heartbeat)
        self._repeat("replicas", CHECK_S, lambda: self.check_replicas(ROUND_S))
        self._repeat("sources", LOOK_S, self.gateway.sources.refresh)
        self._repeat("catalogue", settings.refresh_s, self.refresh_catalogue)
        self._repeat("turns", MEASURE_S, self.adjust_limits)
        self._repeat("probes", settings.probe_s, self.probe, self._cancel_probes)

    def _repeat(
        self,
        name: str,
        seconds: float,
        work: Callable[[], Awaitable[None]],
        cleanup: Callable[[], None] = lambda: None,
    ) -> None:
        async def loop() -> None:
            try:
                await every(seconds, work, lambda: task.heartbeat(), lambda why: task.failed(why))
            finally:
                cleanup()

        task = self.gateway.supervisor.run(name, loop, stall_s=STALL_S + seconds)

    async def refresh_access_control(self) -> None:
        if await self.gateway.access_control.refresh_off_loop():
            self.gateway.follow_policy()

    async def check_replicas(self, within_s: float = CHECK_TIMEOUT_S) -> None:
        """Check which replicas are up (``ReplicaPool.check``) and which are drained. Call it once
        before the catalogue is first read."""
        gateway, pool = self.gateway, self.gateway.pool
        addresses = gateway.drains.current()
        if gateway.shared_drains:
            listed = frozenset(replica.grpc_address for replica in pool.replicas)
            addresses |= await gateway.shared_drains.current(listed)
        for replica in pool.drain(addresses):
            gateway.metrics.is_not_drained(replica)
        await pool.check(within_s)
        gateway.open_sequences.sweep()
        drained = [
            replica
            for replica in pool.replicas
            if replica.is_drained and gateway.is_idle(replica) and pool.is_dispensable(replica)
        ]
        gateway.metrics.show_replicas(pool.replicas, drained)

    async def adjust_limits(self) -> None:
        """Let each model have as many requests at a time as Triton's own queue suggests, and each
        language model as many texts as the engines of the servers that are up now take."""
        gateway = self.gateway
        busy = []
        for name, queue in gateway.queues.items():
            model, replicas = gateway.catalogue.models.get(name), self._replicas_of(name)
            if queue.peak > 1 and model and replicas:
                busy.append((queue, model, replicas))
        wanted = [
            (replica, step)
            for _, model, replicas in busy
            for step in model.steps or (model.name,)
            for replica in replicas
        ]
        deltas = await self._triton_times.read(wanted, time.monotonic())
        for queue, model, replicas in busy:
            queue_s, compute_s = for_each_request(deltas, replicas, model.steps or (model.name,))
            waited_s = _waited_s(name, replicas)
            if compute_s > 0:
                queue_s += waited_s
            delay_s, is_merged = model.batch_delay_s, model.short.most_rows > 0
            waiting = ONE_BY_ONE
            if delay_s is not None or is_merged:
                waiting = Waiting(BATCH_SHARE, delay_s or 0.0)
            queue.measured(len(replicas), queue_s, compute_s, waiting)
        for name, text_queue in gateway.text_queues.items():
            text_queue.resize(*gateway.engine_share(name))
            text_queue.forget_idle()
        gateway.metrics.show_queues({**gateway.queues, **gateway.text_queues})
        for queues in (gateway.queues, gateway.text_queues):
            for name in [name for name in queues if name not in gateway.catalogue.models]:
                if not queues[name].in_flight and not queues[name].waiting:
                    del queues[name]
                    gateway.metrics.forget_queue(name)

    async def refresh_catalogue(self) -> None:
        gateway = self.gateway
        previous_faults = gateway.reader.faults
        try:
            gateway.catalogue = await gateway.reader.read(gateway.pool.replicas)
        except GatewayError:
            return  # ``outage`` reports it after a while; the last catalogue stays in use
        if gateway.response_cache:
            gateway.response_cache.keep_served(
                gateway.catalogue, self._giving_wrong_answers(), self._right_as_of()
            )
            memory = gateway.response_cache.memory
            gateway.metrics.show_cache(memory.bytes, memory.evicted)
            memory.evicted = 0
        gateway.compare_fallbacks()
        for model, fault in gateway.reader.faults.items():
            if previous_faults.get(model) != fault:
                log.error("model %s is not exposed: %s", model, fault)

    def _giving_wrong_answers(self) -> frozenset[str]:
        """The pipelines whose golden answer is wrong, at one replica or more."""
        return frozenset(
            name
            for replica in self.gateway.pool.replicas
            for name, fault in replica.probes.items()
            if fault.startswith(ANSWERS)
        )

    def _right_as_of(self) -> dict[str, float]:
        """Each pipeline with a golden sample -> when the last one was sent (monotonic seconds) that
        was answered correctly; of its replicas, the one for which that is longest ago."""
        as_of: dict[str, float] = {}
        for name, model in self.gateway.catalogue.models.items():
            replicas = self._replicas_of(name) if model.probe else []
            probes = [self._probes.get((replica.address, name), _Probe()) for replica in replicas]
            if probes:
                as_of[name] = min(probe.right_as_of for probe in probes)
        return as_of

    async def probe(self) -> None:
        """Probe every pipeline on every replica that can be probed, and evaluate the responses.

        A late probe holds up no other: it stays in flight while the others are sent again. A round
        takes at most ``LATE_S`` plus the time for Triton's statistics.
        """
        gateway = self.gateway
        models = gateway.catalogue.models
        endpoints = {model.name for model in models.values() if model.endpoint_schema}
        names = sorted(set(gateway.settings.pipelines) | endpoints)
        started = [
            self._start_probe(replica, models[name])
            for name in names
            for replica in self._replicas_of(name)
        ]
        tasks = [task for task in started if task]
        if tasks:
            await asyncio.wait(tasks, timeout=LATE_S)
        faults = dict(await asyncio.gather(*(self._evaluate(name) for name in names)))
        for name, fault in faults.items():
            if gateway.probes.get(name) != fault:
                log.info("pipeline %s: %s", name, shown_state(gateway, name, fault))
        gateway.probes = faults
        current = {(replica.address, name) for replica in gateway.pool.replicas for name in names}
        for removed in set(self._probes) - current:
            self._cancel_probe(self._probes.pop(removed))

    def _cancel_probes(self) -> None:
        for probe in self._probes.values():
            self._cancel_probe(probe)
        self._probes = {}

    def _cancel_probe(self, probe: _Probe) -> None:
        if probe.task:
            probe.task.cancel()

    def _replicas_of(self, name: str) -> list[Replica]:
        """The replicas on which the model can be probed."""
        if name not in self.gateway.catalogue.models:
            return []
        replicas = self.gateway.pool.replicas
        return [replica for replica in replicas if replica.health and replica.serves(name)]

    def _start_probe(self, replica: Replica, model: Model) -> asyncio.Task[None] | None:
        """A new probe, or None if one is in flight, or it is too early for one."""
        probe = self._probes.setdefault((replica.address, model.name), _Probe())
        is_healthy = replica.probes.get(model.name) == ""
        if probe.is_pending or (is_healthy and time.monotonic() < probe.since + probe.pause_s):
            return None
        probe.since = time.monotonic()
        probe.moved = probe.moved or probe.since
        probe.task = asyncio.create_task(self._probe_replica(replica, model, probe))
        return probe.task

    async def _evaluate(self, name: str) -> tuple[str, str]:
        """The pipeline, and '' if at least one replica responds correctly, else the fault."""
        model = self.gateway.catalogue.models.get(name)
        if model is None:
            return name, "is not being served"
        replicas = self._replicas_of(name)
        if not replicas:
            return name, "is served by no replica that responds"
        faults = await asyncio.gather(*(self._evaluate_at(replica, model) for replica in replicas))
        if not all(faults):
            return name, ""
        return name, faults[0]  # clients see it: only the log says which replica it is

    async def _evaluate_at(self, replica: Replica, model: Model) -> str:
        """The outcome of the replica's last probe. A late one is judged by the model's progress."""
        probe = self._probes.get((replica.address, model.name))
        if probe is not None and probe.is_pending and time.monotonic() - probe.since >= LATE_S:
            await self._evaluate_late(replica, model, probe, f"{_NO_RESPONSE} in time")
        return replica.probes.get(model.name, "is being probed for the first time")

    async def _probe_replica(self, replica: Replica, model: Model, probe: _Probe) -> None:
        previous_fault = replica.probes.get(model.name)
        # Triton's message about a failure is logged when it is new, not every second.
        request_id.set("" if previous_fault else f"probe-of-{model.name}")
        fault, is_late = await self._send_golden(replica, model, probe_time_s(probe.took_s))
        if is_late:
            await self._evaluate_late(replica, model, probe, fault)
            return
        probe.is_silent = False
        if not fault:
            probe.took_s = time.monotonic() - probe.since
            probe.right_as_of = probe.since
        _set_fault(replica, model, fault)

    async def _evaluate_late(
        self, replica: Replica, model: Model, probe: _Probe, fault: str
    ) -> None:
        """Load is not death: as long as the model completes anything, the outcome of its last probe
        stands, and a model that was never probed successfully counts as healthy."""
        previous_fault = replica.probes.get(model.name)
        is_busy = await self._is_busy(replica, model, probe)
        if previous_fault and not probe.is_silent:
            return  # its last response was wrong: only another response can change that
        if not is_busy:
            probe.is_silent, probe.has_moved = True, False
            if not previous_fault:
                _set_fault(replica, model, fault)
        elif probe.has_moved or previous_fault == "":
            replica.probes[model.name] = ""

    async def _send_golden(
        self, replica: Replica, model: Model, timeout_s: float
    ) -> tuple[str, bool]:
        """'' or the fault, and whether the fault is only that no response arrived in time, or that
        the server refused the probe for lack of capacity."""
        if model.golden_fault:
            return model.golden_fault, False
        try:
            # No permit: a full server is probed too. Nor is the response recorded for the model:
            # it does not show that clients get theirs.
            async with asyncio.timeout(timeout_s):
                if model.probe is None:
                    return await _check_liveness(replica.upstream, model), False
                probe_response = await golden_response(
                    replica.upstream, model, model.probe, timeout_s
                )
            replica.ended("", None)
            return probe_response.fault(), False
        except (GatewayError, TimeoutError) as error:
            replica.ended("", error)
            is_late = isinstance(error, TimeoutError | DeadlineExceeded | NoCapacity)
            reason = f" ({error})" if str(error) else " in time"
            return _NO_RESPONSE + reason, is_late
        except Exception as error:  # without a verdict the model would be probed forever
            log.exception("model %s cannot be probed", model.name)
            return f"cannot be probed with its golden sample ({type(error).__name__})", False

    async def _is_busy(self, replica: Replica, model: Model, probe: _Probe) -> bool:
        """Whether the model, or a step of it, has recently completed anything on this replica: for
        a client of ours, or for anybody, by Triton's own count. True for a model whose counts were
        never read."""
        now = time.monotonic()
        if replica.health is not Health.UP:
            return False
        counts = await _completed(replica.upstream, (model.name, *model.steps))
        if counts != probe.counts:
            probe.has_moved = probe.has_moved or bool(probe.counts)
            probe.moved = now
            probe.counts = counts or probe.counts
        responded = replica.responded.get(model.name, 0.0)
        probe.has_moved = probe.has_moved or responded > probe.since
        silent_s = min(max(BUSY_S, self.gateway.settings.deadline_s), LONGEST_BUSY_S)
        return now - max(probe.moved, responded) < silent_s


def _set_fault(replica: Replica, model: Model, fault: str) -> None:
    if fault and fault != replica.probes.get(model.name):
        log.warning("replica %s: pipeline %s %s", replica.address, model.name, fault)
    replica.probes[model.name] = fault


async def _completed(upstream: Upstream, names: Iterable[str]) -> tuple[int, ...]:
    """How many requests Triton has completed for these models, successfully or not; () if the
    server does not say."""
    try:
        responses = [await upstream.describe("ModelStatistics", name) for name in names]
    except GatewayError:
        return ()
    counts: list[int] = []
    for response in responses:
        for stats in response.model_stats:
            counts += (stats.inference_stats.success.count, stats.execution_count)
    return tuple(counts)


async def _check_liveness(upstream: Upstream, model: Model) -> str:
    """For a model without a golden sample: '' or the fault, as far as the server shows it."""
    response = await upstream.describe("ModelReady", model.name)
    if not response.ready:
        return "is not ready"
    if model.decoupled and not await upstream.stream_ends.respond():
        return "cannot be called: its server does not respond on streams"
    return ""


def _waited_s(model: str, replicas: Sequence[Replica]) -> float:
    """For how long a request waited here on average, to be sent with others: it is as much a queue
    as Triton's own, which is short because of this one."""
    https = [replica.upstream.http_upstream for replica in replicas]
    waits = [http.take_waits(model) for http in https if http is not None]
    requests = sum(wait.requests for wait in waits)
    return sum(wait.seconds for wait in waits) / requests if requests else 0.0


async def golden_response(
    upstream: Upstream, model: Model, probe: Probe, timeout_s: float
) -> ProbeResponse:
    """The model's response to its golden request.

    The responses of a decoupled model are joined until they have all that the sample expects.
    """
    probe_response = ProbeResponse(probe.golden)
    if not model.decoupled:
        probe_response.add(await upstream.infer(probe.request, timeout_s, model.short.alone))
        return probe_response
    async with aclosing(upstream.stream(probe.request, timeout_s, timeout_s)) as responses:
        async for response in responses:
            probe_response.add(response)
            if probe_response.is_complete:
                break
    return probe_response


def outage(gateway: Gateway) -> str:
    """Why nothing at all can be served, or ''."""
    if fault := gateway.sources.fault():
        return f"no Triton server is known: {fault}"
    if not any(replica.health for replica in gateway.pool.replicas):
        return "no Triton server can be reached"
    if time.monotonic() - gateway.reader.read_at > STALE_S and not _is_only_late(gateway):
        return f"no Triton server has listed its models for {STALE_S:.0f} s"
    return "" if gateway.catalogue.models else "no model is being served"


def _is_only_late(gateway: Gateway) -> bool:
    """Load is not death: whether a server that is too busy to list its models still responds to
    other requests, while the previous catalogue is in use."""
    since = time.monotonic() - BUSY_S
    return gateway.reader.is_waiting and any(
        replica.health is Health.UP and replica.last_response > since
        for replica in gateway.pool.replicas
    )


def readiness(gateway: Gateway) -> dict[str, str]:
    """Each pipeline that must be ready -> '' or its fault; also the faults of background tasks that
    are down, and an ``outage`` if there is one."""
    faults = {
        name: gateway.probes.get(name, "has not been probed yet")
        for name in gateway.settings.pipelines
    }
    for task, fault in gateway.supervisor.faults().items():
        faults[f"background:{task}"] = fault
    if reason := outage(gateway):
        faults["tidegate:replicas"] = reason
    if DRAIN.is_announced:
        faults["tidegate:draining"] = "the gateway is stopping"
    return faults


def readable_readiness(gateway: Gateway, context: RequestContext) -> dict[str, str]:
    """As ``readiness``, for the pipelines that the caller may read. The gateway's own faults have a
    colon in their names, and are shown to everybody."""
    return {
        name: fault
        for name, fault in readiness(gateway).items()
        if ":" in name or context.may_read(name)
    }


def shown_state(gateway: Gateway, name: str, fault: str) -> str:
    """'ready' only with evidence: a pipeline that has no golden sample is 'unproved', which does
    not keep the gateway from being ready."""
    model = gateway.catalogue.models.get(name)
    return fault or ("ready" if model and model.probe else "unproved")
