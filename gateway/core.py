"""The gateway's core: what every API calls to run an inference."""

import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from starlette.types import Receive, Scope
from tritonclient.grpc import service_pb2

from gateway.access.control import AccessControl
from gateway.errors import (
    InvalidRequest,
    NoCapacity,
    UpstreamError,
    quoted,
)
from gateway.http.json_body import SMALL_BYTES
from gateway.http.memory_budget import MemoryBudget
from gateway.http.off_loop import OffLoop
from gateway.http.request_context import RequestContext
from gateway.limits.limiter import Admission
from gateway.metrics import Metrics
from gateway.models.catalogue import UNKNOWN_CAPACITY, Catalogue, EngineCapacity, Model
from gateway.models.compiled_endpoint import CompiledEndpoint, Row
from gateway.models.rows import Batch, Tensors, batches, count_tokens, read_tensors
from gateway.models.same_endpoint import difference
from gateway.models.sequences import OpenSequences, SequenceIds, SequenceStep, step_of
from gateway.models.short import NOT_SHORT, Short
from gateway.models.v2_request import V2Request
from gateway.render import Reply
from gateway.row_inference import OnResponse, RowInference, infer_only
from gateway.settings import Settings
from gateway.supervision import Supervisor
from gateway.upstream import trace_context
from gateway.upstream.admission import FairQueue, Turn
from gateway.upstream.affinity import TextWork, text_work_of
from gateway.upstream.balancing import Health
from gateway.upstream.catalogue_reader import CatalogueReader
from gateway.upstream.circuits import Circuits, Outcome
from gateway.upstream.drains import Drains
from gateway.upstream.replica_sources import ReplicaSources, Resolver
from gateway.upstream.replicas import Replica, ReplicaPool, lost
from gateway.upstream.server import Upstream
from gateway.upstream.text_admission import TextQueue
from gateway.upstream.triton_errors import request_id

if TYPE_CHECKING:
    from gateway.request_log import RequestLog
    from gateway.response_cache.cache import CachedResponse, ResponseCache
    from gateway.response_cache.key import CacheScope
    from gateway.shadowing import Shadows
    from gateway.tracing import Tracing
    from gateway.upstream.shared_drains import SharedDrains

log = logging.getLogger("gateway")
A = TypeVar("A")
P = ParamSpec("P")
PIPELINE = b"x-tidegate-pipeline"  # the header in which an operator chooses between versions
FAILED = 502  # the status of an UpstreamError: the model or its server failed


class _OverGrpc(Exception):
    """The request has to go to Triton over gRPC: says nothing about the replica."""


class Gateway:
    """The settings, access control, replicas and model catalogue of one running gateway."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.supervisor = Supervisor(self.metrics.restarted)
        self.access_control = AccessControl(settings, self.supervisor, self.metrics)
        self.memory_budget = MemoryBudget(
            settings.buffered_bytes,
            settings.caller_buffered_bytes,
            lambda: bool(self.access_control.policy.current.rules.tenants),
        )
        self.off_loop = OffLoop()
        self.sequences = SequenceIds(settings.pepper_file)
        self.open_sequences = OpenSequences()
        self.catalogue = Catalogue(expected=frozenset(settings.pipelines))
        self.reader = CatalogueReader(settings.pipelines)
        self.probes: Mapping[str, str] = {}  # pipeline -> '' if it is healthy, else the fault
        self.pool = ReplicaPool(
            lambda address: Upstream(address, settings.triton_key_file), settings.max_inflight
        )
        self.drains = Drains(settings.state_folder)
        self.shared_drains = _shared_drains(settings.redis_url)
        self.sources = ReplicaSources(self.pool, lambda: _resolver(settings.dns_server))
        self.circuits = Circuits(self._circuit_changed)
        # (pipeline, its fallback) -> why that cannot answer for it, or ''.
        self.fallback_faults: dict[tuple[str, str], str] = {}
        self._compared: dict[str, Model] = {}  # those of these pipelines as they were served last
        # Of the models that were asked; those of language models.
        self.queues: dict[str, FairQueue] = {}
        self.text_queues: dict[str, TextQueue] = {}
        self.response_cache = _response_cache(settings)
        self.shadows: Shadows | None = None  # imported when a request is drawn first
        self.request_log = _request_log(settings.request_log, self.metrics)
        self.tracing = _tracing(settings.otlp_endpoint, settings.trace_ratio)
        self.follow_policy()

    def finished(self, context: RequestContext, status: int) -> None:
        """Count a request that has ended, and log it if there is a request log."""
        if context.fallback_of:
            context.model = context.fallback_of
        self.metrics.record(context, status, self.catalogue)
        if context.trial or (context.replica and (self.circuits or status == FAILED)):
            self._judge_pipeline(context, status)
        if self.request_log:
            self.request_log.note(context, status)
        if context.spans:
            context.spans.end(context, status)
        if context.shadow and self.shadows and status < 400:
            self.shadows.send(context, context.shadow, self.catalogue)

    def _judge_pipeline(self, context: RequestContext, status: int) -> None:
        """Count what became of a request for its pipeline's circuit breaker."""
        outcome = Outcome.NEITHER
        pipeline = context.trial or context.pipeline
        # A canary that became unhealthy since the trial began: another pipeline's answer.
        is_its_own = pipeline == context.pipeline
        if context.replica and is_its_own and (status < 400 or status == FAILED):
            outcome = Outcome.FAILED if status == FAILED else Outcome.ANSWERED
        self.circuits.ended(
            (pipeline, context.caller),
            context.replica,
            outcome,
            lambda: [replica.address for replica in self.pool.candidates(pipeline)],
            is_trial=bool(context.trial),
        )

    def _circuit_changed(self, pipeline: str, caller: str, is_open: bool) -> None:
        if is_open:
            self.metrics.circuit_opened(pipeline)
            log.warning(
                "%s refuses requests of caller %s for a while: every replica failed most of them",
                *(pipeline, caller),
            )
        else:
            log.info("%s takes the requests of caller %s again", pipeline, caller)

    def follow_policy(self) -> None:
        """Use the replicas that gateway.toml lists or, if it lists none, those of the settings."""
        rules = self.access_control.policy.current.rules
        self.sources.apply(rules.replicas or self.settings.replicas)

    def context(
        self, scope: Scope, receive: Receive, deadline_s: float = math.inf
    ) -> RequestContext:
        """The context of a request that has just arrived. Its deadline is ``deadline_s``, or the
        gateway's own if that is shorter."""
        settings, access = self.settings, self.access_control.policy.current.access
        if deadline_s > settings.deadline_s:
            deadline_s = settings.deadline_s
        context = RequestContext(scope, receive, access, settings.body_limit_bytes, deadline_s)
        # Each request runs in its own task, and therefore in its own contextvars context.
        request_id.set(context.request_id)
        metadata = None
        if trace_context.TRACEPARENT in context.headers:
            metadata = trace_context.read(context.scope["headers"])
            context.trace_id = trace_context.trace_id(metadata) if metadata else ""
        trace_context.upstream_metadata.set(metadata)
        if self.tracing:
            context.spans = spans = self.tracing.begin(metadata)
            context.trace_id = spans.trace_id
        context.body_timeout_s = settings.body_timeout_s
        context.memory_budget = self.memory_budget
        return context

    async def work(
        self, context: RequestContext, work: Callable[P, A], *args: P.args, **kwargs: P.kwargs
    ) -> A:
        """The result of ``work``, which runs off the event loop if the request's body is large."""
        if context.body_bytes > SMALL_BYTES:
            return await self.off_loop.run(context, work, *args, **kwargs)
        return work(*args, **kwargs)

    async def read(self, context: RequestContext, work: Callable[[bytes], A]) -> A:
        """The request's body, parsed by ``work``."""
        body = await context.body()
        return await self.work(context, work, body)

    def named(self, context: RequestContext) -> tuple[Model, str]:
        """The model and version in the path. Raises NotFound if either is not served."""
        version = context.param("version")
        return self.catalogue.model(context.param("model"), version), version

    def named_for_inference(self, context: RequestContext) -> tuple[Model, str]:
        """As ``named``, for an inference: the model may be its fallback (``destination``)."""
        version = context.param("version")
        name = self.destination(context, context.param("model"), version)
        return self.catalogue.model(name, version), version

    async def describe_model(self, context: RequestContext, method: str) -> Any:
        """Triton's description of the model in the path: see ``Upstream.describe``."""
        model, version = self.named(context)
        return await self.describe(context, method, model.name, version)

    async def describe(
        self, context: RequestContext, method: str, name: str = "", version: str = ""
    ) -> Any:
        """As ``ReplicaPool.describe``, and its duration is added to the ``Server-Timing``."""
        started = time.perf_counter()
        try:
            return await self.pool.describe(method, name, version)
        finally:
            context.upstream_s += time.perf_counter() - started

    def destination(self, context: RequestContext, name: str, version: str = "") -> str:
        """The pipeline to resolve for an inference with ``name``: itself or, while it has nowhere
        to go, its fallback in gateway.toml, if the caller may use that and their endpoints are
        equal. A ``version`` that was asked for has no fallback."""
        context.fallback = context.fallback_of = ""  # gRPC asks first without the version
        table = self.access_control.policy.current.rules.pipelines.get(name)
        if table is None or version or context.principal is None or PIPELINE in context.headers:
            return name
        fallback = table.fallback
        if self.fallback_faults.get((name, fallback)) != "":
            return name
        if (
            self._has_nowhere_to_go(context, name)
            and context.access.allowed(context.principal, "infer", fallback)
            and not self._has_nowhere_to_go(context, fallback)
        ):
            context.fallback, context.fallback_of = fallback, name
            return fallback
        # If its trial is due, this request is it from now on, not only when its body has been read:
        # others would come here too, and be refused then, though they have a fallback. With
        # canaries it is not known yet which pipeline will be tried.
        if name not in self.access_control.policy.current.rules.routes:
            self._enter_circuit(context, name)
        return name

    def _enter_circuit(self, context: RequestContext, name: str) -> int:
        """The request goes to the pipeline, as its circuit's trial if one is due. Returns 0 or, if
        the circuit is open, the seconds after which it may be sent."""
        if not self.circuits or context.trial == name:
            return 0
        retry_after_s = self.circuits.retry_after_s(name, context.caller)
        if not retry_after_s and self.circuits.enter(name, context.caller):
            context.trial = name
        return retry_after_s

    def _has_nowhere_to_go(self, context: RequestContext, name: str) -> bool:
        """Whether a request for the pipeline would be refused now for lack of capacity."""
        if name not in self.catalogue.models or not self.pool.takes(name):
            return True
        if context.trial != name and self.circuits.retry_after_s(name, context.caller):
            return True
        queue = self.queues.get(name) or self.text_queues.get(name)
        return queue is not None and queue.is_full(
            context.tenant, self._weight(context), context.remaining_s()
        )

    def compare_fallbacks(self) -> None:
        """Check that the endpoints of the fallbacks in gateway.toml are equal to those of their
        pipelines; of one that is not served now, the endpoint that it had last. A fault is logged
        when it is new."""
        models, faults = self.catalogue.models, {}
        tables = self.access_control.policy.current.rules.pipelines
        names = {*tables, *(table.fallback for table in tables.values())}
        known = {**self._compared, **models}
        self._compared = {name: known[name] for name in names if name in known}
        for name, table in tables.items():
            pair = name, table.fallback
            model, fallback = (self._compared.get(member) for member in pair)
            if model is None or fallback is None:
                faults[pair] = "both must be served once"
                continue
            what = difference(model, fallback)
            faults[pair] = what and f"{table.fallback} cannot answer for {name}: {what}"
            if what and self.fallback_faults.get(pair) != faults[pair]:
                log.error("gateway.toml: pipelines.%s.fallback: %s", name, faults[pair])
        self.fallback_faults = faults

    def serving(
        self,
        context: RequestContext,
        model: Model,
        message: service_pb2.ModelInferRequest | None = None,
    ) -> str:
        """The pipeline that serves this caller or, with ``per = "request"``, this request: the
        model itself, or a canary of it.

        A request of a sequence never goes to a canary: when the weights change, the next request
        of the sequence would go to a model that knows nothing about it.

        Raises NoCapacity while the pipeline's circuit breaker is open for the caller.
        """
        name = self._chosen(context, model, message)
        retry_after_s = self._enter_circuit(context, name)
        if retry_after_s:
            raise NoCapacity(
                "the model has failed most of your requests: try again shortly",
                retry_after_s=retry_after_s,
            )
        return name

    def _chosen(
        self,
        context: RequestContext,
        model: Model,
        message: service_pb2.ModelInferRequest | None,
    ) -> str:
        context.pipeline = name = model.name
        rules = self.access_control.policy.current.rules
        if PIPELINE in context.headers:
            context.pipeline = self._chosen_by_header(context, name)
            return context.pipeline
        if rules.shadows and name in rules.shadows and not context.is_stream:
            self._draw_shadow(context, name, message)
        if not rules.routes:
            return name
        route = rules.routes.get(name)
        if not route or context.principal is None or context.param("version"):
            return name
        if message is not None and step_of(message):
            return name
        key = context.canary_key if route.per == "request" else context.principal.id
        from gateway.policy.canary import choose

        context.canaries, context.beside = route.weights, ",".join(model.versions)

        def is_healthy(canary: str) -> bool:
            is_right = not self.probes.get(canary, "not probed")
            # An API may ask twice: a request that is its trial stays with it.
            is_trial = context.trial == canary
            is_closed = is_trial or not self.circuits.retry_after_s(canary, context.caller)
            return canary in self.catalogue.models and is_right and is_closed

        context.pipeline = choose(name, route.weights, key, is_healthy)
        if context.pipeline != name:
            context.shadow = None  # the shadow is compared with the pipeline itself
        return context.pipeline

    def _chosen_by_header(self, context: RequestContext, name: str) -> str:
        """The pipeline itself or the canary of it that the request's header names. The request is
        no part of the canary's share: it counts for no verdict.

        Raises Forbidden without the right to ``admin``, InvalidRequest for any other name, and
        NoCapacity if the canary is not served now.
        """
        context.require("admin", name)
        chosen = context.headers[PIPELINE].decode("latin-1")
        route = self.access_control.policy.current.rules.routes.get(name)
        choices = [name, *(route.weights if route else ())]
        if chosen not in choices:
            raise InvalidRequest(
                f"{PIPELINE.decode()} is {quoted(chosen)}: choose from {', '.join(choices)}"
            )
        if chosen not in self.catalogue.models:
            raise NoCapacity(f"{chosen} is not being served now", retry_after_s=1)
        return chosen

    def _draw_shadow(
        self,
        context: RequestContext,
        name: str,
        message: service_pb2.ModelInferRequest | None,
    ) -> None:
        """Once for each request. A request of a sequence, or to a version, has no shadow."""
        if context.param("version") or (message is not None and step_of(message)):
            context.shadow = None
            return
        if context.is_shadow_drawn:
            return
        context.is_shadow_drawn = True
        if self.shadows is None:
            from gateway.shadowing import Shadows

            self.shadows = Shadows(self.pool, self.metrics, self.queues)
        shadow = self.access_control.policy.current.rules.shadows[name]
        self.shadows.draw(context, name, shadow, self.catalogue)

    async def turn(
        self, context: RequestContext, model: Model, serving: str, text: TextWork | None = None
    ) -> Turn:
        """A turn at the pipeline that is ``serving`` the model, once tenants have had theirs; leave
        it when Triton has answered. ``text`` is what a language model is to continue: who asks
        for that ends the wait itself if the client leaves (``while_connected``). Other decoupled
        models have queues of their own, and a sequence has a slot, so neither waits here.

        Raises QuotaExceeded, NoCapacity or DeadlineExceeded as ``TurnQueue.enter`` does.
        """
        if text:
            return await self._text_turn(context, model, serving, text)
        if model.decoupled or model.sequences is not None:
            return Turn(None)
        queue = self.queues.get(serving)
        if queue is None:
            queue = self.queues[serving] = FairQueue(max(1, len(self.pool.replicas)))
        turn = queue.try_enter()
        if turn is not None:
            return turn
        self.pool.require(serving)  # nobody waits for a server that is not there
        work = queue.enter(context.tenant, self._weight(context), context.remaining_s())
        return await context.while_connected(work)

    def refuse_waiting(self) -> None:
        """Refuse the requests that wait for their turn: the gateway is stopping."""
        for queue in (*self.queues.values(), *self.text_queues.values()):
            queue.close()

    async def _text_turn(
        self, context: RequestContext, model: Model, serving: str, text: TextWork
    ) -> Turn:
        queue = self.text_queues.get(serving)
        if queue is None:
            queue = self.text_queues[serving] = TextQueue(*self.engine_share(serving))
        queue.is_shared = bool(self.access_control.policy.current.rules.tenants)
        self.pool.require(serving)
        return await queue.enter(
            *(context.tenant, self._weight(context), context.remaining_s()),
            tokens=text.tokens,
            is_stream=text.is_stream,
            sequences=text.sequences,
        )

    def engine_share(self, serving: str) -> tuple[EngineCapacity, float]:
        """The capacity of the language model's engine on one server, and this process's share of
        the servers (``TextQueue.resize``)."""
        model = self.catalogue.models.get(serving)
        # Those that get the next text: what a drained one still runs holds new ones back a little.
        servers = len(self.pool.candidates(serving))
        processes = self.settings.workers * self.settings.gateways
        return model.capacity if model else UNKNOWN_CAPACITY, max(1, servers) / processes

    def _weight(self, context: RequestContext) -> float:
        return self.access_control.policy.current.rules.weight(context.tenant)

    def text_work(
        self,
        context: RequestContext,
        model: Model,
        message: service_pb2.ModelInferRequest,
        raws: Sequence[bytes | memoryview],
    ) -> TextWork | None:
        """What a text to continue costs, and how it begins; None for any other request. ``raws``
        are the bytes of the message's inputs."""
        if not model.is_language_model:
            return None
        return text_work_of(context.tenant, message.inputs, raws)

    def permit(
        self,
        context: RequestContext,
        model: Model,
        message: service_pb2.ModelInferRequest,
        at: Upstream | None = None,
        work: TextWork | None = None,
    ) -> AbstractContextManager[Upstream]:
        """A permit for this one request, whose text is ``work``. ``message`` names the model and
        already carries our own sequence id (``SequenceIds.put_own``).

        ``at`` is where the previous message of the same stream went: this one goes there too, if
        it belongs to no sequence and that replica still takes requests. Raises NoCapacity, either
        here or on entering; for a sequence also UpstreamError if its server is gone, and
        QuotaExceeded if the tenant has too many open sequences.
        """
        step = step_of(message)
        if step is None:
            return self.pool.permit(message.model_name, message.model_version, at, work)
        return self._sequence_permit(context.tenant, model, message, step)

    async def send(
        self,
        context: RequestContext,
        model: Model,
        message: service_pb2.ModelInferRequest,
        work: Callable[[Upstream], Coroutine[object, object, A]],
    ) -> A:
        """The result of ``work`` with a permit as ``permit`` gives it. If the replica is lost, a
        request that belongs to no sequence is sent to another one, once."""
        with await self.turn(context, model, message.model_name):
            if step_of(message) is not None:
                with self.permit(context, model, message) as upstream:
                    return await work(upstream)
            return await self.pool.call(
                message.model_name, message.model_version, work, may_repeat=model.may_repeat
            )

    @contextmanager
    def _sequence_permit(
        self, tenant: str, model: Model, message: object, step: SequenceStep
    ) -> Iterator[Upstream]:
        replica = self.home(model, message, step)
        with self._under_way(tenant, model, step, replica):
            try:
                with replica.permit(model.name) as upstream:
                    yield upstream
            except NoCapacity as error:
                if step.starts or replica.health is Health.UP:
                    raise
                self.open_sequences.lose(step.id)
                raise lost() from error

    def home(
        self, model: Model, message: service_pb2.ModelInferRequest, step: SequenceStep
    ) -> Replica:
        """The replica that has this request's sequence, or on which it is to start: see
        ``ReplicaPool.home``. The replica is remembered only for models for which Triton itself
        refuses an unknown sequence."""
        try:
            return self.pool.home(
                step.id,
                message.model_name,
                message.model_version,
                begun_at=self.open_sequences.address(step.id),
                starts=step.starts and model.sequences is not None,
            )
        except UpstreamError:
            self.open_sequences.lose(step.id)
            raise

    def is_idle(self, replica: Replica) -> bool:
        """Whether it has no request and no open sequence of this process."""
        if replica.inflight or replica.aside:
            return False
        return not self.open_sequences.are_at(replica.grpc_address)

    def _under_way(
        self, tenant: str, model: Model, step: SequenceStep, replica: Replica
    ) -> AbstractContextManager[None]:
        if model.sequences is None:
            return nullcontext()
        return self.open_sequences.under_way(
            step,
            (tenant, model.name, replica.grpc_address),
            model.sequences.idle_s,
            self.most_open(model),
        )

    def most_open(self, model: Model) -> int | None:
        """How many sequences a tenant may have open on one server, by this process's count.

        It is a share of the server's capacity, divided among the processes, and at least one. None
        without tenants: there is nobody to leave room for.
        """
        if model.sequences is None or not self.access_control.policy.current.rules.tenants:
            return None
        settings = self.settings
        share = model.sequences.at_once * settings.sequence_share // 100
        return max(1, share // (settings.workers * settings.gateways))

    async def infer(
        self,
        context: RequestContext,
        model: Model,
        message: service_pb2.ModelInferRequest,
        admission: Admission | None,
        *,
        over_grpc: bool = False,
    ) -> service_pb2.ModelInferResponse:
        """One inference for an admitted request, cancelled if its client disconnects.

        ``over_grpc``: however short it is, since Triton's HTTP API could not take it."""
        message.model_name = self.serving(context, model, message)
        meter = self.access_control.meter(context, admission, model)
        if meter:
            meter.prepare(message)

        async def send(upstream: Upstream) -> service_pb2.ModelInferResponse:
            context.sent_to(upstream.address)
            short = NOT_SHORT if over_grpc else self._short(message.model_name)
            work = upstream.infer(message, context.remaining_s(), short, context.tenant)
            if admission:
                admission.started()
            return await _timed(context, work)

        scope = self.cache_scope(context, message) if self.response_cache else None
        if scope:
            response = await self._cached(context, model, message, scope, send)
        else:
            response = await self.send(context, model, message, send)
        context.version = response.model_version
        if context.shadow and context.sent_at:
            context.shadow.answered(message, response, context.upstream_s)
        if meter:
            meter.read(response)
        response.model_name = model.name
        return response

    def _short(self, serving: str) -> Short:
        """Of the model that serves: a canary has its own."""
        model = self.catalogue.models.get(serving)
        return model.short if model else NOT_SHORT

    def cache_scope(
        self, context: RequestContext, message: service_pb2.ModelInferRequest
    ) -> "CacheScope | None":
        """What the response to this message is kept under, whose ``model_name`` is what serves it;
        None if the response cache has nothing to do with it (``ResponseCache.scope``)."""
        return self._scope(context, message.model_name, message.model_version, message.parameters)

    def may_be_cached(self, context: RequestContext, serving: str, version: str) -> bool:
        """Whether a request to that model, without a sequence, may be answered from the cache."""
        return self._scope(context, serving, version) is not None

    def _scope(
        self,
        context: RequestContext,
        serving: str,
        version: str = "",
        parameters: Iterable[str] = (),
    ) -> "CacheScope | None":
        if self.response_cache is None:
            return None
        return self.response_cache.scope(
            context, self.catalogue, self.reader.as_of, serving, version, parameters
        )

    async def cached(
        self,
        context: RequestContext,
        scope: "CacheScope",
        key: bytes,
        ask: Callable[[], Coroutine[object, object, "CachedResponse"]],
    ) -> bytes:
        """The response from the cache or, if it is not there, that of ``ask``; see
        ``ResponseCache.responses``."""
        assert self.response_cache is not None  # noqa: S101 - there is a scope

        async def work(missing: Sequence[int]) -> "Sequence[CachedResponse]":
            return [await ask()]

        (response,) = await self.response_cache.responses(
            context, scope, [key], work, lambda: self._is_current(context, scope)
        )
        context.version = response.version
        return response.data

    def _is_current(self, context: RequestContext, scope: "CacheScope") -> bool:
        return self._scope(context, scope.model, scope.version) == scope

    async def _cached(
        self,
        context: RequestContext,
        model: Model,
        message: service_pb2.ModelInferRequest,
        scope: "CacheScope",
        send: Callable[[Upstream], Coroutine[object, object, service_pb2.ModelInferResponse]],
    ) -> service_pb2.ModelInferResponse:
        from gateway.response_cache.cache import CachedResponse
        from gateway.response_cache.key import elements_of, key_of

        key = await self.work(context, lambda: key_of(scope, message, elements_of(message)))
        identifier, message.id = message.id, ""

        async def ask() -> CachedResponse:
            response = await self.send(context, model, message, send)
            return CachedResponse(response.model_version, response.SerializeToString())

        data = await self.cached(context, scope, key, ask)
        response = service_pb2.ModelInferResponse.FromString(data)
        response.id = identifier
        return response

    async def http_upstream(
        self, context: RequestContext, model: Model, request: V2Request
    ) -> Reply | None:
        """As ``infer``, over HTTP/1.1. None if the request has to go over gRPC instead."""

        async def send(upstream: Upstream) -> Reply:
            http = upstream.http_upstream
            if http is None:
                raise _OverGrpc
            context.sent_to(upstream.address)
            work = http.infer(request, context.remaining_s(), context.tenant)
            if context.admission:
                context.admission.started()
            reply = await _timed(context, work)
            if reply is None:
                raise _OverGrpc
            context.version = reply.version
            if context.shadow:
                context.shadow.answered(request, reply, context.upstream_s)
            return reply

        if not self.pool.has_http(request.model):
            return None
        with await self.turn(context, model, request.model):
            try:
                return await self.pool.call(
                    request.model, request.version, send, may_repeat=model.may_repeat
                )
            except _OverGrpc:
                return None

    async def infer_rows(
        self,
        context: RequestContext,
        model: Model,
        endpoint_schema: CompiledEndpoint,
        rows: Sequence[Row],
    ) -> list[tuple[Tensors, int]]:
        """For each row, the tensors of the batch that contains it and its index in that batch. The
        admission lasts until the response has been sent."""
        admission = await context.enter(self.access_control.admit(context, model))
        serving = self.serving(context, model)
        row_batches = await self.work(context, batches, model, endpoint_schema, rows)
        scope = self._scope(context, serving) if self.response_cache else None
        if scope:
            results = await self._cached_batches(context, model, scope, row_batches, admission)
        else:
            results = await self._send_batches(context, model, row_batches, serving, admission)
        if model.counts_tokens:
            context.tokens = count_tokens(model, results)
        meter = self.access_control.meter(context, admission, model)
        if meter:
            meter.read_rows(results)
        return results

    async def _send_batches(
        self,
        context: RequestContext,
        model: Model,
        row_batches: Sequence[Batch],
        serving: str,
        admission: Admission,
        on_response: OnResponse | None = None,
    ) -> list[tuple[Tensors, int]]:
        may_repeat, short = model.may_repeat, self._short(serving)
        with await self.turn(context, model, serving) as turn:
            admission.started()
            if len(row_batches) == 1:
                work = infer_only(
                    *(context, self.pool, serving, row_batches[0], on_response),
                    may_repeat=may_repeat,
                    short=short,
                )
                return await _timed(context, work)
            inference = RowInference(
                *(context, self.pool, self.queues.get(serving), serving, row_batches, on_response),
                may_repeat=may_repeat,
                short=short,
            )
            work = inference.run(turn, self._weight(context), self._window)
            return await _timed(context, work)

    async def _cached_batches(
        self,
        context: RequestContext,
        model: Model,
        scope: "CacheScope",
        row_batches: Sequence[Batch],
        admission: Admission,
    ) -> list[tuple[Tensors, int]]:
        """As ``_send_batches``, for the batches whose responses are not in the cache."""
        from gateway.response_cache.cache import CachedResponse
        from gateway.response_cache.key import combined, elements_of, key_of

        assert self.response_cache is not None  # noqa: S101 - there is a scope

        def keys_of() -> list[bytes]:
            messages = [batch.message for batch in row_batches]
            return [key_of(scope, message, elements_of(message)) for message in messages]

        async def work(missing: Sequence[int]) -> Sequence[CachedResponse]:
            responses: dict[tuple[int, ...], CachedResponse] = {}

            def keep(batch: Batch, response: service_pb2.ModelInferResponse) -> None:
                data = response.SerializeToString()
                responses[batch.row_indices] = CachedResponse(response.model_version, data)

            due = [row_batches[index] for index in missing]
            await self._send_batches(context, model, due, scope.model, admission, keep)
            return [responses[batch.row_indices] for batch in due]

        keys = await self.work(context, keys_of)
        flight_key = b""
        if len(keys) > 1:  # an error names a row: these requests have the same ones
            flight_key = combined(keys, [batch.row_indices for batch in row_batches])
        responses = await self.response_cache.responses(
            context, scope, keys, work, lambda: self._is_current(context, scope), flight_key
        )
        results: dict[int, tuple[Tensors, int]] = {}
        for batch, (version, data) in zip(row_batches, responses, strict=True):
            context.version = version
            response = service_pb2.ModelInferResponse.FromString(data)
            tensors = read_tensors(response, len(batch.row_indices))
            for index, row_index in enumerate(batch.row_indices):
                results[row_index] = tensors, index
        return [results[row_index] for row_index in range(len(results))]

    @property
    def _window(self) -> int:
        return max(1, self.settings.max_inflight // 4)


def _response_cache(settings: Settings) -> "ResponseCache | None":
    if not settings.cache_mib:
        return None
    from gateway.response_cache.cache import ResponseCache

    return ResponseCache(settings)


def _shared_drains(redis_url: str) -> "SharedDrains | None":
    if not redis_url:
        return None
    from gateway.upstream.shared_drains import SharedDrains

    return SharedDrains(redis_url)


def _request_log(target: str, metrics: Metrics) -> "RequestLog | None":
    if not target:
        return None
    from gateway.request_log import RequestLog

    return RequestLog(target, metrics.log_lines_dropped)


def _resolver(dns_server: str) -> Resolver:
    from gateway.upstream.dns_lookup import DnsResolver

    return DnsResolver(dns_server)


def _tracing(endpoint: str, ratio: float) -> "Tracing | None":
    if not endpoint:
        return None
    from gateway.tracing import Tracing

    return Tracing(endpoint, ratio)


async def _timed(context: RequestContext, work: Coroutine[object, object, A]) -> A:
    """Run ``work`` for as long as the client is connected, and add its duration, from when it was
    sent to a replica, to the ``Server-Timing`` that the client receives."""
    start = time.perf_counter()
    try:
        return await context.while_connected(work)
    finally:
        context.upstream_s += context.since_sent_s(start)
