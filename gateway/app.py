"""The gateway as an ASGI application: the doors, put together."""

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from gateway.core import Gateway
from gateway.edge import Edge, unknown_path
from gateway.errors import GatewayError, WrongMethod
from gateway.openai_door import OpenAIDoor
from gateway.openapi import describe
from gateway.probes import Background, readiness
from gateway.settings import Settings
from gateway.task_door import TaskDoor
from gateway.v2_door import V2Door

TITLE = "Tidegate"
VERSION = "0.1.0"


def create_app(settings: Settings) -> FastAPI:
    """The application; everything that it needs is in ``settings``."""
    # The docs page carries its own JavaScript: it works where there is no internet.
    app = FastAPIOffline(title=TITLE, version=VERSION, lifespan=_lifespan, redirect_slashes=False)
    gateway = Gateway(settings)
    app.state.gateway = gateway
    doors = [
        route
        for door in (V2Door(gateway), OpenAIDoor(gateway), TaskDoor(gateway))
        for route in door.routes()
    ]
    app.router.routes.extend(doors)
    _add_control_routes(app, gateway)
    _document(app, gateway)
    app.add_exception_handler(HTTPException, _translate)
    app.add_middleware(Edge, settings=settings, keys=gateway.keys, doors=doors)
    return app


def from_environment() -> FastAPI:
    """What each uvicorn worker calls."""
    return create_app(Settings.read(os.environ))


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    gateway: Gateway = app.state.gateway
    background = Background(gateway)
    # The first request must find the keys and the models read.
    await background.refresh_keys()
    await background.refresh_catalogue()
    task = asyncio.create_task(background.run())
    gc.freeze()  # what lives for ever need not be looked at again and again
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await gateway.pool.close()


def _add_control_routes(app: FastAPI, gateway: Gateway) -> None:
    no_key: dict[str, Any] = {"security": []}

    @app.get("/healthz", tags=["health"], summary="Whether the gateway runs", openapi_extra=no_key)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/readyz", tags=["health"], summary="Whether every pipeline answers", openapi_extra=no_key
    )
    async def readyz(response: Response) -> dict[str, Any]:
        pipelines = readiness(gateway)
        ready = not any(pipelines.values())
        response.status_code = 200 if ready else 503
        shown = {name: fault or "ready" for name, fault in pipelines.items()}
        return {"status": "ready" if ready else "not ready", "pipelines": shown}


def _document(app: FastAPI, gateway: Gateway) -> None:
    """Serve an OpenAPI document that follows the catalogue."""
    base: dict[str, Any] = {}
    rendered: dict[str, dict[str, Any]] = {}

    def openapi() -> dict[str, Any]:
        if not base:
            base.update(get_openapi(title=TITLE, version=VERSION, routes=app.routes))
        digest = gateway.catalogue.digest
        if digest not in rendered:
            rendered.clear()
            rendered[digest] = describe(base, gateway.catalogue)
        return rendered[digest]

    app.openapi = openapi  # type: ignore[method-assign]


def _translate(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, as the taxonomy's."""
    path = request.url.path
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        raise WrongMethod(f"{request.method} is not for {path}: use {allowed}")
    if isinstance(error, HTTPException) and error.status_code == 404:
        raise unknown_path(path)
    raise GatewayError("the request could not be handled: report the request id")
