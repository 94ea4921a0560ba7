"""``/v1/models``: the pipelines as OpenAI lists models."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from gateway.core import Gateway
from gateway.http.control import ControlRoute, CurrentContext
from gateway.http.handler import needs


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0  # OpenAI requires a time; a served model has no meaningful one
    owned_by: Literal["tidegate"] = "tidegate"


class ModelCards(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


def models_router(gateway: Gateway) -> APIRouter:
    router = APIRouter(route_class=ControlRoute, tags=["OpenAI"])

    @router.get("/v1/models")
    @needs("read")
    async def models(context: CurrentContext) -> ModelCards:
        """The pipelines that the caller may read."""
        public = [model.name for model in gateway.catalogue.public if context.may_read(model.name)]
        return ModelCards(data=[ModelCard(id=name) for name in public])

    @router.get("/v1/models/{model}")
    @needs("read", model="model")
    async def one_model(model: str) -> ModelCard:
        return ModelCard(id=gateway.catalogue.endpoint(model)[0].name)

    return router
