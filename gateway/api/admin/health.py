"""``/healthz`` and ``/readyz`` for operators, without a key; ``/`` redirects to ``/docs``."""

from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel
from starlette.responses import RedirectResponse

from gateway.background import readable_readiness, readiness, shown_state
from gateway.core import Gateway
from gateway.errors import GatewayError
from gateway.http.control import ControlRoute, CurrentContext
from gateway.http.handler import open_to_all
from gateway.http.request_context import RequestContext

_NO_KEY: dict[str, Any] = {"security": [{}]}


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """``pipelines``: for each that the caller may read, 'ready', 'unproved' or its fault."""

    status: Literal["ready", "not ready"]
    pipelines: dict[str, str] | None = None


def health_router(gateway: Gateway) -> APIRouter:
    router = APIRouter(route_class=ControlRoute, tags=["health"])

    @router.get("/", include_in_schema=False)
    @open_to_all
    async def start() -> Response:
        return RedirectResponse("/docs")

    @router.get(
        "/healthz",
        summary="Whether the gateway runs",
        operation_id="healthz",
        openapi_extra=_NO_KEY,
    )
    @open_to_all
    async def healthz() -> Health:
        return Health()

    @router.get(
        "/readyz",
        summary="Whether every pipeline answers; with a key, the state of each",
        operation_id="readyz",
        openapi_extra=_NO_KEY,
        response_model_exclude_none=True,
        responses={503: {"model": Readiness, "description": "Not ready"}},
    )
    @open_to_all
    async def readyz(context: CurrentContext, response: Response) -> Readiness:
        # Once there are tenants, pipelines are named only to a caller who may read them: a name
        # tells a stranger something, and a fault tells more.
        is_ready = not any(readiness(gateway).values())
        response.status_code = 200 if is_ready else 503
        readable = None
        if await _is_identified(gateway, context):
            readable = {
                name: shown_state(gateway, name, fault)
                for name, fault in readable_readiness(gateway, context).items()
            }
        return Readiness(status="ready" if is_ready else "not ready", pipelines=readable)

    return router


async def _is_identified(gateway: Gateway, context: RequestContext) -> bool:
    if not gateway.access_control.policy.current.rules.tenants:
        return True
    try:
        await gateway.access_control.identify(context)
    except GatewayError:
        return False  # a probe with an old key still learns whether the gateway is ready
    return True
