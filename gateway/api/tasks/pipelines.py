"""``/v1/pipelines``: what each pipeline is for, and what its card says of it."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from gateway.api.openapi.operations import TASK, responses
from gateway.core import Gateway
from gateway.http.control import ControlRoute, CurrentContext
from gateway.http.handler import needs
from gateway.models.catalogue import Model
from gateway.models.compiled_endpoint import CompiledEndpoint
from modelspec.machine import cpu_name, usable_cores

# As one range, which also keeps FastAPI from adding a 422 that a name cannot cause.
_FAILURES: dict[int | str, dict[str, Any]] = {"4XX": responses(TASK, None, (404,))["404"]}


class Latency(BaseModel):
    """Of the latest requests that the gateway's worker had answered by the versions served now:
    from the first byte of the request to the end of its response, whatever its size."""

    p50_ms: float
    p99_ms: float
    requests: int  # that it is computed from, at most the latest 500
    machine: str  # the gateway's


class PipelineCard(BaseModel):
    name: str
    purpose: str
    versions: list[str]  # that are served now
    routes: list[str]  # where it is served, besides /v2
    # What its conversion knew: Hugging Face's license, language, datasets, base_model and
    # pipeline_tag; metrics, limits, ...
    card: dict[str, Any]
    latency: Latency | None  # None until enough requests were answered
    example: dict[str, Any]  # a request of its endpoint schema


class PipelineCards(BaseModel):
    pipelines: list[PipelineCard]


def pipelines_router(gateway: Gateway) -> APIRouter:
    router = APIRouter(route_class=ControlRoute, tags=["tasks"])

    @router.get("/v1/pipelines", responses=_FAILURES)
    @needs("read")
    async def pipelines(context: CurrentContext) -> PipelineCards:
        """The pipelines that the caller may read, each with its card."""
        names = [model.name for model in gateway.catalogue.public if context.may_read(model.name)]
        return PipelineCards(pipelines=[_card(gateway, name) for name in names])

    @router.get("/v1/pipelines/{model}", responses=_FAILURES)
    @needs("read", model="model")
    async def one_pipeline(model: str) -> PipelineCard:
        """One pipeline's card."""
        return _card(gateway, model)

    return router


# What an endpoint schema binds -> the routes of that API.
_BOUND = {
    "embeddings": ("/v1/embeddings",),
    "chat": ("/v1/chat/completions", "/v1/responses"),
    "completions": ("/v1/completions",),
    "tokenize": ("/tokenize", "/detokenize"),
}


def _routes(model: Model, endpoint: CompiledEndpoint) -> list[str]:
    own = [] if model.decoupled else [f"/v1/{model.name}"]
    bound = [path for name, paths in _BOUND.items() if name in endpoint.openai for path in paths]
    relevance = ["/v1/rerank", "/v1/score"] if endpoint.compares_texts else []
    return [*own, *bound, *relevance]


def _with_relevance(card: Mapping[str, Any], endpoint: CompiledEndpoint) -> dict[str, Any]:
    """An embedding model compares texts too, and the card says how."""
    if not endpoint.compares_texts or "rerank" in endpoint.openai:
        return dict(card)
    return {**card, "relevance": "the cosine of the vectors: each text is read by itself"}


def _latency(gateway: Gateway, model: Model) -> Latency | None:
    durations = gateway.metrics.latest_durations(model.name, model.versions)
    if not durations:
        return None
    return Latency(
        p50_ms=_percentile_ms(durations, 0.5),
        p99_ms=_percentile_ms(durations, 0.99),
        requests=len(durations),
        machine=_machine(),
    )


def _percentile_ms(durations: list[float], share: float) -> float:
    """The shortest of the sorted durations that this share of them does not exceed."""
    return round(1000 * durations[math.ceil(share * len(durations)) - 1], 2)


@cache
def _machine() -> str:
    return f"{cpu_name()}, {usable_cores()} cores"


def _card(gateway: Gateway, name: str) -> PipelineCard:
    model, endpoint = gateway.catalogue.endpoint(name)
    schema = endpoint.schema
    return PipelineCard(
        name=model.name,
        purpose=schema.purpose,
        versions=list(model.versions),
        routes=_routes(model, endpoint),
        card=_with_relevance(schema.card, endpoint),
        latency=_latency(gateway, model),
        example=dict(schema.example),
    )
