"""The gateway's parts, joined: what the doors call to have something inferred."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

from starlette.types import Receive, Scope
from tritonclient.grpc import service_pb2

from gateway.addons import load
from gateway.balancing import Health
from gateway.doors.v2_request import V2Request
from gateway.errors import DeadlineExceeded, Malformed, NoCapacity, UpstreamBroke
from gateway.guard import Guard
from gateway.http.endpoint import Reply
from gateway.http.exchange import Exchange
from gateway.http.held import HeldBytes
from gateway.http.json_body import SMALL_BYTES
from gateway.http.off_loop import OffLoop
from gateway.limits.limiter import Admission
from gateway.metrics import Metrics
from gateway.models.catalogue import Catalogue, Model, Reader
from gateway.models.face import Face, Row
from gateway.models.rows import Batch, Tensors, batches, read_tensors
from gateway.models.sequences import OpenSequences, SequenceIds, SequenceStep, step_of
from gateway.replicas import Replica, ReplicaPool, lost
from gateway.settings import Settings
from gateway.supervision import Supervisor
from gateway.upstream import Upstream, request_id

A = TypeVar("A")
P = ParamSpec("P")
WINDOW = 8  # batches of one request that are under way at a time


class Gateway:
    """Holds the settings, the keys, the replicas and the catalogue of one running gateway."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.supervisor = Supervisor(self.metrics.restarted)
        self.guard = Guard(settings, self.supervisor, self.metrics)
        self.held = HeldBytes(
            settings.held_bytes,
            settings.caller_held_bytes,
            lambda: bool(self.guard.policy.current.rules.tenants),
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
        self.pool.adopt(self.guard.policy.current.rules.replicas or self.settings.replicas)

    def exchange(self, scope: Scope, receive: Receive, deadline_s: float = math.inf) -> Exchange:
        """A request that came just now; the gateway's own deadline bounds its."""
        settings, access = self.settings, self.guard.policy.current.access
        deadline_s = min(deadline_s, settings.deadline_s)
        exchange = Exchange(scope, receive, access, settings.body_limit_bytes, deadline_s)
        request_id.set(exchange.request_id)  # each request has a task, and so a context, of its own
        exchange.body_patience_s, exchange.memory = settings.body_patience_s, self.held
        return exchange

    async def work(
        self, exchange: Exchange, work: Callable[P, A], *args: P.args, **kwargs: P.kwargs
    ) -> A:
        """What ``work`` makes of the request's body: beside the event loop, if it is large."""
        if exchange.body_bytes > SMALL_BYTES:
            return await self.off_loop.run(exchange, work, *args, **kwargs)
        return work(*args, **kwargs)

    async def read(self, exchange: Exchange, work: Callable[[bytes], A]) -> A:
        """The body as ``work`` reads it."""
        body = await exchange.body()
        return await self.work(exchange, work, body)

    def named(self, exchange: Exchange) -> tuple[Model, str]:
        """The model and version in the path; NotFound when either is not served."""
        version = exchange.param("version")
        return self.catalogue.model(exchange.param("model"), version), version

    async def described(self, exchange: Exchange, method: str) -> Any:
        """What Triton tells of the model in the path: see ``Upstream.describe``."""
        model, version = self.named(exchange)
        return await self.pool.describe(method, model.name, version)

    def serving(
        self,
        exchange: Exchange,
        model: Model,
        message: service_pb2.ModelInferRequest | None = None,
    ) -> str:
        """The pipeline that answers this caller or, with ``per = "request"``, this request: the
        model itself, or a canary of it.

        Never a canary for a request of a sequence: when the weights change, its next request would
        go to a model that knows nothing of it.
        """
        route = self.guard.policy.current.rules.routes.get(model.name)
        if not route or exchange.principal is None or exchange.param("version"):
            return model.name
        if message is not None and step_of(message):
            return model.name
        who = exchange.lot if route.per == "request" else exchange.principal.id
        chosen: str = load("canary")(model.name, route.weights, who, self._answers)
        return chosen

    def _answers(self, name: str) -> bool:
        return name in self.catalogue.models and not self.probes.get(name, "not probed")

    def permit(
        self,
        exchange: Exchange,
        model: Model,
        message: service_pb2.ModelInferRequest,
        at: Upstream | None = None,
    ) -> AbstractContextManager[Upstream]:
        """A permit for this one request, which says by name and parameters what is asked; its
        sequence id is our own by now (``SequenceIds.put_own``).

        ``at`` is where the last message of the same stream went: the next one goes there too, if
        it is no sequence's and that replica is still to be asked. Calling or entering it raises
        NoCapacity; of a sequence also UpstreamBroke when its server is gone, and QuotaExceeded when
        it would be one open sequence too many.
        """
        step = step_of(message)
        if step is None:
            return self.pool.permit(message.model_name, message.model_version, at)
        return self._permit_of_sequence(exchange.tenant, model, message, step)

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
        except UpstreamBroke:
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
        if model.sequences is None or not self.guard.policy.current.rules.tenants:
            return None
        settings = self.settings
        share = model.sequences.at_once * settings.sequence_share // 100
        return max(1, share // (settings.workers * settings.gateways))

    async def infer(
        self,
        exchange: Exchange,
        model: Model,
        message: service_pb2.ModelInferRequest,
        admission: Admission | None,
    ) -> service_pb2.ModelInferResponse:
        """One inference for an exchange that was admitted, cancelled when its client leaves."""
        message.model_name = self.serving(exchange, model, message)
        meter = self.guard.meter(admission, model)
        if meter:
            meter.prepare(message)
        with self.permit(exchange, model, message) as upstream:
            work = upstream.infer(message, exchange.remaining_s())
            if admission:
                admission.started()
            response = await _timed(exchange, work)
        if meter:
            meter.read(response)
        response.model_name = model.name
        return response

    async def relay(self, exchange: Exchange, request: V2Request) -> Reply | None:
        """As ``infer``, over HTTP/1.1; None when gRPC has to be asked instead."""
        with self.pool.permit(request.model, request.version) as upstream:
            if upstream.relay is None:
                return None
            work = upstream.relay.infer(request, exchange.remaining_s(), exchange.tenant)
            if exchange.admission:
                exchange.admission.started()
            return await _timed(exchange, work)

    async def infer_rows(
        self, exchange: Exchange, model: Model, face: Face, rows: Sequence[Row]
    ) -> list[tuple[Tensors, int]]:
        """For each row the tensors it is in and its place there. The admission ends with the
        exchange's answer."""
        admission = await exchange.enter(self.guard.admit(exchange, model))
        serving = self.serving(exchange, model)
        work = await self.work(exchange, batches, model, face, rows)
        asked = self._answers_to(work, exchange.remaining_s(), serving)
        admission.started()  # here nothing waits: what is refused is no deadline
        answers = await _timed(exchange, asked)
        meter = self.guard.meter(admission, model)
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
                    for index, place in enumerate(batch.places):
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
    except Malformed as error:
        raise _of_caller(error, batch.places) from error
    return read_tensors(response, len(batch.places))


def _of_caller(error: Malformed, places: Sequence[int]) -> Malformed:
    """The upstream's fault, of the row as the caller counts rows."""
    if error.row is not None and error.row < len(places):
        return error.at_row(places[error.row])
    return error.at_row(places[0]) if len(places) == 1 else error


async def _timed(exchange: Exchange, work: Coroutine[Any, Any, A]) -> A:
    """Until the client leaves; how long it took is told to the client."""
    asked = time.perf_counter()
    try:
        return await exchange.while_connected(work)
    finally:
        exchange.upstream_s += time.perf_counter() - asked


async def _together(work: Sequence[Coroutine[Any, Any, A]]) -> list[A]:
    """Run together; the first failure cancels the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
