"""The gateway's parts, joined: what the APIs call to have something inferred."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

from starlette.types import Receive, Scope
from tritonclient.grpc import service_pb2

from gateway.access_control import AccessControl
from gateway.errors import DeadlineExceeded, InvalidRequest, NoCapacity, UpstreamError
from gateway.http.handler import Reply
from gateway.http.held import HeldBytes
from gateway.http.json_body import SMALL_BYTES
from gateway.http.off_loop import OffLoop
from gateway.http.request_context import RequestContext
from gateway.limits.limiter import Admission
from gateway.metrics import Metrics
from gateway.models.catalogue import Catalogue, Model, Reader
from gateway.models.endpoint_schema import EndpointSchema, Row
from gateway.models.rows import Batch, Tensors, batches, read_tensors
from gateway.models.sequences import OpenSequences, SequenceIds, SequenceStep, step_of
from gateway.models.v2_request import V2Request
from gateway.settings import Settings
from gateway.supervision import Supervisor
from gateway.upstream.balancing import Health
from gateway.upstream.replicas import Replica, ReplicaPool, lost
from gateway.upstream.server import Upstream, request_id

A = TypeVar("A")
P = ParamSpec("P")
WINDOW = 8  # batches of one request that are under way at a time


class Gateway:
    """Holds the settings, the keys, the replicas and the catalogue of one running gateway."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.supervisor = Supervisor(self.metrics.restarted)
        self.access_control = AccessControl(settings, self.supervisor, self.metrics)
        self.held = HeldBytes(
            settings.held_bytes,
            settings.caller_held_bytes,
            lambda: bool(self.access_control.policy.current.rules.tenants),
        )
        self.off_loop = OffLoop()
        self.sequences = SequenceIds(settings.pepper_file)
        self.open_sequences = OpenSequences()
        self.catalogue = Catalogue(expected=frozenset(settings.pipelines))
        self.reader = Reader(settings.pipelines)
        self.probes: Mapping[str, str] = {}  # pipeline -> '' when it answers, else what is wrong
        self.pool = ReplicaPool(
            lambda address: Upstream(address, settings.triton_key_file), settings.max_inflight
        )
        self.follow_policy()

    def follow_policy(self) -> None:
        """Talk to the replicas that gateway.toml lists, or else to those of the settings."""
        self.pool.apply(self.access_control.policy.current.rules.replicas or self.settings.replicas)

    def context(
        self, scope: Scope, receive: Receive, deadline_s: float = math.inf
    ) -> RequestContext:
        """A request that came just now; the gateway's own deadline bounds its."""
        settings, access = self.settings, self.access_control.policy.current.access
        deadline_s = min(deadline_s, settings.deadline_s)
        context = RequestContext(scope, receive, access, settings.body_limit_bytes, deadline_s)
        request_id.set(
            context.request_id
        )  # each request has a task, and so a contextvars context, of its own
        context.body_patience_s, context.memory = settings.body_patience_s, self.held
        return context

    async def work(
        self, context: RequestContext, work: Callable[P, A], *args: P.args, **kwargs: P.kwargs
    ) -> A:
        """What ``work`` makes of the request's body: beside the event loop, if it is large."""
        if context.body_bytes > SMALL_BYTES:
            return await self.off_loop.run(context, work, *args, **kwargs)
        return work(*args, **kwargs)

    async def read(self, context: RequestContext, work: Callable[[bytes], A]) -> A:
        """The body as ``work`` reads it."""
        body = await context.body()
        return await self.work(context, work, body)

    def named(self, context: RequestContext) -> tuple[Model, str]:
        """The model and version in the path; NotFound when either is not served."""
        version = context.param("version")
        return self.catalogue.model(context.param("model"), version), version

    async def describe_model(self, context: RequestContext, method: str) -> Any:
        """What Triton tells of the model in the path: see ``Upstream.describe``."""
        model, version = self.named(context)
        return await self.pool.describe(method, model.name, version)

    def serving(
        self,
        context: RequestContext,
        model: Model,
        message: service_pb2.ModelInferRequest | None = None,
    ) -> str:
        """The pipeline that answers this caller or, with ``per = "request"``, this request: the
        model itself, or a canary of it.

        Never a canary for a request of a sequence: when the weights change, its next request would
        go to a model that knows nothing of it.
        """
        route = self.access_control.policy.current.rules.routes.get(model.name)
        if not route or context.principal is None or context.param("version"):
            return model.name
        if message is not None and step_of(message):
            return model.name
        who = context.lot if route.per == "request" else context.principal.id
        from gateway.policy.canary import choose

        return choose(model.name, route.weights, who, self._answers)

    def _answers(self, name: str) -> bool:
        return name in self.catalogue.models and not self.probes.get(name, "not probed")

    def permit(
        self,
        context: RequestContext,
        model: Model,
        message: service_pb2.ModelInferRequest,
        at: Upstream | None = None,
    ) -> AbstractContextManager[Upstream]:
        """A permit for this one request, which says by name and parameters what is asked; its
        sequence id is our own by now (``SequenceIds.put_own``).

        ``at`` is where the last message of the same stream went: the next one goes there too, if
        it is no sequence's and that replica is still to be asked. Calling or entering it raises
        NoCapacity; of a sequence also UpstreamError when its server is gone, and QuotaExceeded when
        it would be one open sequence too many.
        """
        step = step_of(message)
        if step is None:
            return self.pool.permit(message.model_name, message.model_version, at)
        return self._permit_of_sequence(context.tenant, model, message, step)

    @contextmanager
    def _permit_of_sequence(
        self, tenant: str, model: Model, message: Any, step: SequenceStep
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
        """The replica that has this request's sequence, or where it shall begin: see
        ``ReplicaPool.home``. Where it begins is remembered only for a model of which Triton itself
        refuses a sequence that it does not know."""
        try:
            return self.pool.home(
                step.id,
                message.model_name,
                message.model_version,
                begun_at=self.open_sequences.place(step.id),
                starts=step.starts and model.sequences is not None,
            )
        except UpstreamError:
            self.open_sequences.lose(step.id)
            raise

    def _under_way(
        self, tenant: str, model: Model, step: SequenceStep, replica: Replica
    ) -> AbstractContextManager[None]:
        if model.sequences is None:
            return nullcontext()
        return self.open_sequences.under_way(
            step,
            (tenant, model.name, replica.address),
            model.sequences.idle_s,
            self.most_open(model),
        )

    def most_open(self, model: Model) -> int | None:
        """How many sequences a tenant may have open at one server, by this process's count.

        A share of what the server takes, divided among the processes, and one at least. None
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
    ) -> service_pb2.ModelInferResponse:
        """One inference for an context that was admitted, cancelled when its client leaves."""
        message.model_name = self.serving(context, model, message)
        meter = self.access_control.meter(admission, model)
        if meter:
            meter.prepare(message)
        with self.permit(context, model, message) as upstream:
            work = upstream.infer(message, context.remaining_s())
            if admission:
                admission.started()
            response = await _timed(context, work)
        if meter:
            meter.read(response)
        response.model_name = model.name
        return response

    async def http_upstream(self, context: RequestContext, request: V2Request) -> Reply | None:
        """As ``infer``, over HTTP/1.1; None when gRPC has to be asked instead."""
        with self.pool.permit(request.model, request.version) as upstream:
            if upstream.http_upstream is None:
                return None
            work = upstream.http_upstream.infer(request, context.remaining_s(), context.tenant)
            if context.admission:
                context.admission.started()
            return await _timed(context, work)

    async def infer_rows(
        self,
        context: RequestContext,
        model: Model,
        endpoint_schema: EndpointSchema,
        rows: Sequence[Row],
    ) -> list[tuple[Tensors, int]]:
        """For each row the tensors it is in and its place there. The admission ends with the
        context's answer."""
        admission = await context.enter(self.access_control.admit(context, model))
        serving = self.serving(context, model)
        work = await self.work(context, batches, model, endpoint_schema, rows)
        asked = self._answers_to(work, context.remaining_s(), serving)
        admission.started()  # here nothing waits: what is refused is no deadline
        answers = await _timed(context, asked)
        meter = self.access_control.meter(admission, model)
        if meter:
            meter.read_rows(answers)
        return answers

    async def _answers_to(
        self, work: Sequence[Batch], timeout_s: float, serving: str
    ) -> list[tuple[Tensors, int]]:
        """A few batches at a time; the first failure cancels the rest and is raised as it is.

        A permit once had is kept for one batch after the other: what has begun is not refused
        half-way. NoCapacity when not even one can be had.
        """
        answers: dict[int, tuple[Tensors, int]] = {}
        ends = time.perf_counter() + timeout_s
        waiting = iter(work)

        async def in_turn() -> NoCapacity | None:
            with contextlib.ExitStack() as held:
                try:
                    upstream = held.enter_context(self.pool.permit(serving))
                except NoCapacity as full:
                    return full
                for batch in waiting:
                    batch.message.model_name = serving
                    tensors = await _asked(upstream, batch, ends)
                    for index, place in enumerate(batch.shared_slots):
                        answers[place] = tensors, index
            return None

        if len(work) == 1:
            refusals = [await in_turn()]
        else:
            refusals = await _together([in_turn() for _ in work[: self._window]])
        if refusals[0] and all(refusals):
            raise refusals[0]
        return [answers[place] for place in range(len(answers))]

    @property
    def _window(self) -> int:
        return max(1, min(WINDOW, self.settings.max_inflight // 4))


async def _asked(upstream: Upstream, batch: Batch, ends: float) -> Tensors:
    """The answer to one batch; a fault is of the row as the caller counts rows."""
    left_s = ends - time.perf_counter()
    if left_s <= 0:
        raise DeadlineExceeded("the model did not answer in time: try again or send less")
    try:
        response = await upstream.infer(batch.message, left_s)
    except InvalidRequest as error:
        raise _of_caller(error, batch.shared_slots) from error
    return read_tensors(response, len(batch.shared_slots))


def _of_caller(error: InvalidRequest, shared_slots: Sequence[int]) -> InvalidRequest:
    """The upstream's fault, of the row as the caller counts rows."""
    if error.row is not None and error.row < len(shared_slots):
        return error.at_row(shared_slots[error.row])
    return error.at_row(shared_slots[0]) if len(shared_slots) == 1 else error


async def _timed(context: RequestContext, work: Coroutine[Any, Any, A]) -> A:
    """Until the client leaves; how long it took is told to the client."""
    asked = time.perf_counter()
    try:
        return await context.while_connected(work)
    finally:
        context.upstream_s += time.perf_counter() - asked


async def _together(work: Sequence[Coroutine[Any, Any, A]]) -> list[A]:
    """Run together; the first failure cancels the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
