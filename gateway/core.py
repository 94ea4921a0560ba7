"""The gateway's parts, joined: what the doors call to have something inferred."""

import asyncio
import math
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from starlette.types import Receive, Scope
from tritonclient.grpc import service_pb2

from gateway.addons import load
from gateway.balancing import Health
from gateway.doors.v2_request import V2Request
from gateway.errors import NoCapacity, UpstreamBroke
from gateway.guard import Guard
from gateway.http.endpoint import Reply
from gateway.http.exchange import Exchange
from gateway.limits.limiter import Admission
from gateway.metrics import Metrics
from gateway.models.catalogue import Catalogue, Model, Reader
from gateway.models.face import Face, Row
from gateway.models.rows import Tensors, batches, read_tensors
from gateway.models.sequences import OpenSequences, SequenceIds, SequenceStep, step_of
from gateway.replicas import Replica, ReplicaPool, lost
from gateway.settings import Settings
from gateway.upstream import Upstream, request_id

A = TypeVar("A")


class Gateway:
    """Holds the settings, the keys, the replicas and the catalogue of one running gateway."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.guard = Guard(settings)
        self.metrics = Metrics()
        self.sequences = SequenceIds(settings.pepper_file)
        self.open_sequences = OpenSequences()
        self.catalogue = Catalogue(expected=frozenset(settings.pipelines))
        self.reader = Reader(settings.pipelines)
        self.unproved: frozenset[str] = frozenset()  # models without a golden sample
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
        return exchange

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
        """The pipeline that answers this caller: the model itself, or a canary of it.

        Never a canary for a request of a sequence: when the weights change, its next request would
        go to a model that knows nothing of it.
        """
        weights = self.guard.policy.current.rules.routes.get(model.name)
        if not weights or exchange.principal is None or exchange.param("version"):
            return model.name
        if message is not None and step_of(message):
            return model.name
        chosen: str = load("canary")(model.name, weights, exchange.principal.id, self._answers)
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
            work = upstream.relay.infer(request, exchange.remaining_s())
            return await _timed(exchange, work)

    async def infer_rows(
        self, exchange: Exchange, model: Model, face: Face, rows: Sequence[Row]
    ) -> list[tuple[Tensors, int]]:
        """For each row the tensors it is in and its place there."""
        async with self.guard.admit(exchange, model) as admission:
            serving = self.serving(exchange, model)
            work = self.rows(model, face, rows, exchange.remaining_s(), serving)
            answers = await _timed(exchange, work)
            meter = self.guard.meter(admission, model)
            if meter:
                meter.read_rows(answers)
            return answers

    async def rows(
        self,
        model: Model,
        face: Face,
        rows: Sequence[Row],
        timeout_s: float,
        serving: str = "",
        replica: Replica | None = None,
    ) -> list[tuple[Tensors, int]]:
        """As ``infer_rows``, without a client to watch: what the probes use. ``serving`` is the
        pipeline that answers for the model; ``replica`` the one to ask, however busy it is."""
        answers: dict[int, tuple[Tensors, int]] = {}

        async def ask(places: tuple[int, ...], message: Any) -> None:
            message.model_name = serving or model.name
            name = message.model_name
            # A probe's own answer is no sign that clients have theirs: it names no model.
            with replica.permit() if replica else self.pool.permit(name) as upstream:
                response = await upstream.infer(message, timeout_s)
            tensors = read_tensors(response, len(places))
            answers.update({place: (tensors, index) for index, place in enumerate(places)})

        work = batches(model, face, rows)
        if len(work) == 1:
            await ask(work[0].places, work[0].message)
        else:
            await _all([ask(batch.places, batch.message) for batch in work])
        return [answers[place] for place in range(len(rows))]


async def _timed(exchange: Exchange, work: Coroutine[Any, Any, A]) -> A:
    """Until the client leaves; how long it took is told to the client."""
    asked = time.perf_counter()
    try:
        return await exchange.while_connected(work)
    finally:
        exchange.upstream_s += time.perf_counter() - asked


async def _all(work: list[Any]) -> None:
    """Run together; the first failure cancels the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
