"""The operator's API: metrics, the policy in force, replicas, models; and its own description."""

import asyncio
import contextlib
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from gateway.api.admin.health import Health
from gateway.core import Gateway
from gateway.errors import Internal, InvalidRequest, NoCapacity, NotFound, quoted
from gateway.http.control import ControlRoute
from gateway.http.handler import needs, open_to_all
from gateway.policy.gateway_toml import Rules
from gateway.upstream.drains import LEASE_S, LONGEST_S

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class PolicyInForce(BaseModel):
    """``rules`` has the names of issuers and certificates, and no secrets: the file has none."""

    version: str
    rules: Rules


class ReplicaState(BaseModel):
    """``reason`` is why it receives no requests, or ''; ``probes`` has the faults of pipelines.

    ``ejected`` has the models for which it receives none because it fails more of their requests
    than the others do, and for how many more seconds; 0: it is tried with one request at a time.
    ``drained``: an operator has drained it. ``leaving``: it is no longer listed, and gets requests
    only until one that is can take them. ``tokens``: about how many the texts take that language
    models continue there. ``inflight`` and ``tokens`` are those of the worker that answers.
    """

    address: str
    health: Literal["up", "unknown", "down"]
    reason: str
    inflight: int
    tokens: int
    models: list[str]
    probes: dict[str, str]
    ejected: dict[str, float]
    drained: bool
    leaving: bool


class SourceState(BaseModel):
    """A DNS name that the list of replicas has; ``fault`` says why its last lookup failed, or is
    ''. ``addresses`` are those of the last one that succeeded: they stay in use."""

    source: str
    addresses: list[str]
    fault: str


class Replicas(BaseModel):
    replicas: list[ReplicaState]
    sources: list[SourceState]


class Drain(BaseModel):
    """For how many ``seconds`` from now the replica gets no new requests; ``shared``: of all
    gateways that use the same Redis, and not only of the one that was asked."""

    replica: str
    seconds: float
    shared: bool


class ModelState(BaseModel):
    """``probe`` is '' if the last golden probe succeeded, else the fault; ``proved`` says whether
    the model has a golden sample. ``refused`` are the callers (a key's id, ``jwt:ISSUER:SUB``
    or ``cert:NAME``) whose requests it refuses, because every replica failed most of them, and for
    how many more seconds; 0: it is tried with one request at a time."""

    name: str
    versions: list[str]
    public: bool
    probe: str
    proved: bool
    refused: dict[str, float]


class Models(BaseModel):
    """``faults``: why models that Triton serves cannot be called; ``fallbacks``: why the fallbacks
    of pipelines cannot answer for them."""

    models: list[ModelState]
    faults: dict[str, str]
    fallbacks: dict[str, str]


def _known(gateway: Gateway, replica: str) -> str:
    """The HOST:GRPC_PORT of one of the replicas. Raises NotFound for any other."""
    addresses = [known.grpc_address for known in gateway.pool.replicas]
    if replica not in addresses:
        raise NotFound(f"there is no replica {quoted(replica)}: there are {', '.join(addresses)}")
    return replica


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_S:
        raise InvalidRequest(
            f"seconds must be a number above 0 and at most {LONGEST_S:g}", param="seconds"
        )
    return seconds


def admin_router(gateway: Gateway) -> APIRouter:
    router = APIRouter(route_class=ControlRoute, tags=["admin"])
    watcher_file = gateway.settings.state_folder / "watch.prom"

    @router.get("/healthz", operation_id="healthz", openapi_extra={"security": [{}]})
    @open_to_all
    async def healthz() -> Health:
        """Whether this worker runs."""
        return Health()

    @router.get("/metrics", response_class=Response, operation_id="metrics")
    @needs("admin")
    async def metrics() -> Response:
        """The metrics of all workers and of the stack's watcher, for Prometheus."""
        page = gateway.metrics.page(watcher_file)
        return Response(page, headers={"content-type": METRICS_TYPE})

    @router.get("/admin/policy", operation_id="policy")
    @needs("admin")
    async def policy() -> PolicyInForce:
        """The rules in force."""
        current = gateway.access_control.policy.current
        return PolicyInForce(version=current.version, rules=current.rules)

    @router.get("/admin/replicas", operation_id="replicas")
    @needs("admin")
    async def replicas() -> Replicas:
        """Each replica, whether it receives requests, and if not, why."""
        states = [
            ReplicaState.model_validate(
                {
                    "address": replica.address,
                    "health": replica.health.name.lower(),
                    "reason": replica.reason,
                    "inflight": replica.inflight,
                    "tokens": replica.tokens,
                    "models": sorted(replica.versions or ()),
                    "probes": {name: fault for name, fault in replica.probes.items() if fault},
                    "ejected": {
                        model: round(seconds, 1) for model, seconds in replica.ejected().items()
                    },
                    "drained": replica.is_drained,
                    "leaving": replica.is_leaving,
                }
            )
            for replica in gateway.pool.replicas
        ]
        sources = [
            SourceState(source=source.entry, addresses=list(source.addresses), fault=source.fault)
            for source in gateway.sources.sources
        ]
        return Replicas(replicas=states, sources=sources)

    @router.put("/admin/replicas/{replica}/drain", operation_id="drain_replica")
    @needs("admin")
    async def drain(replica: str, seconds: str = f"{LEASE_S:g}") -> Drain:
        """Send no new requests to the replica (HOST:GRPC_PORT) for so many seconds, as long as
        others can take them; all workers, and with Redis all gateways, follow within a second. Set
        it again to go on."""
        address = _known(gateway, replica)
        seconds_left = _seconds(seconds)
        # In one place only: a gateway that lifts it cannot remove another one's file.
        if gateway.shared_drains and await gateway.shared_drains.set(address, seconds_left):
            with contextlib.suppress(OSError):  # one that was set while Redis was away
                await asyncio.to_thread(gateway.drains.lift, address)
            return Drain(replica=address, seconds=seconds_left, shared=True)
        try:
            await asyncio.to_thread(gateway.drains.set, address, seconds_left)
        except OSError as error:
            raise Internal(f"the drain cannot be written: {error.strerror}") from error
        return Drain(replica=address, seconds=seconds_left, shared=False)

    @router.delete("/admin/replicas/{replica}/drain", operation_id="lift_drain")
    @needs("admin")
    async def lift(replica: str) -> Drain:
        """Send requests to the replica again; its share grows over 10 s. 503 if Redis is
        unavailable: a drain that is in Redis goes on until then, or to its end."""
        address = _known(gateway, replica)
        try:
            await asyncio.to_thread(gateway.drains.lift, address)
        except OSError as error:
            raise Internal(f"the drain cannot be lifted: {error.strerror}") from error
        if not gateway.shared_drains:
            return Drain(replica=address, seconds=0, shared=False)
        if not await gateway.shared_drains.lift(address):
            raise NoCapacity(
                "Redis is unavailable: a drain that is there goes on until its end, or until it is "
                "lifted once Redis responds",
                retry_after_s=1,
            )
        return Drain(replica=address, seconds=0, shared=True)

    @router.get("/admin/models", operation_id="models")
    @needs("admin")
    async def models() -> Models:
        """Every model that can be called, and the result of its last golden probe."""
        states = [
            ModelState(
                name=model.name,
                versions=list(model.versions),
                public=model.endpoint_schema is not None,
                probe=gateway.probes.get(model.name, ""),
                proved=model.probe is not None,
                refused={
                    caller: round(seconds, 1)
                    for caller, seconds in gateway.circuits.open_ones(model.name).items()
                },
            )
            for model in gateway.catalogue.models.values()
        ]
        fallbacks = {name: fault for (name, _), fault in gateway.fallback_faults.items() if fault}
        return Models(models=states, faults=gateway.reader.faults, fallbacks=fallbacks)

    @router.get("/openapi.json", include_in_schema=False)
    @needs("admin")
    async def openapi() -> dict[str, Any]:
        return get_openapi(title="Tidegate admin", version="1", routes=router.routes)

    return router
