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
from starlette.routing import Route

from gateway.addons import ROUTES, load
from gateway.core import Gateway
from gateway.doors.embeddings import OpenAIDoor
from gateway.doors.openapi import describe
from gateway.doors.task import TaskDoor
from gateway.doors.v2 import V2Door
from gateway.errors import GatewayError, Internal, WrongMethod
from gateway.http.edge import Edge, unknown_path
from gateway.http.endpoint import Endpoint, LateEndpoint, Reply, json_reply, open_to_all
from gateway.http.exchange import Exchange
from gateway.http.render import error_reply
from gateway.probes import Background, readiness
from gateway.settings import Settings

TITLE = "Tidegate"
VERSION = "0.1.0"
DOCUMENTS = 64  # descriptions kept: one for each set of models that callers may see


def create_app(settings: Settings) -> Edge:
    """The application; everything that it needs is in ``settings``."""
    # The docs page carries its own JavaScript: it works where there is no internet.
    app = FastAPIOffline(title=TITLE, version=VERSION, lifespan=_lifespan, redirect_slashes=False)
    gateway = Gateway(settings)
    app.state.gateway = gateway
    doors = [
        Description(app, gateway).route(),
        *(
            Route(path, LateEndpoint(gateway, addon, handler), methods=[method])
            for method, path, addon, handler in ROUTES
        ),
        *V2Door(gateway).routes(),
        *OpenAIDoor(gateway).routes(),
        *TaskDoor(gateway).routes(),
    ]
    app.router.routes.extend(doors)
    _add_control_routes(app, gateway)
    app.add_exception_handler(Exception, _shown)
    app.add_exception_handler(HTTPException, _shown)
    # Not by ``add_middleware``: some of the framework's layers would be outside of it.
    return Edge(app, gateway, doors)


def from_environment() -> Edge:
    """What each uvicorn worker calls."""
    return create_app(Settings.read(os.environ))


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    gateway: Gateway = app.state.gateway
    background = Background(gateway)
    # The first request must find the keys and the models read.
    await gateway.guard.open()
    gateway.follow_policy()
    await background.check_replicas()
    await background.refresh_catalogue()
    task = asyncio.create_task(background.run())
    settings = gateway.settings
    wanted = {"admin": settings.admin_port, "grpc_door": settings.grpc_port}
    listeners = [load(name)(gateway, port) for name, port in wanted.items() if port]
    for listener in listeners:
        await listener.start()
    gc.freeze()  # what lives for ever need not be looked at again and again
    try:
        yield
    finally:
        for listener in reversed(listeners):
            await listener.stop()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await gateway.pool.close()
        await gateway.guard.close()


def _add_control_routes(app: FastAPI, gateway: Gateway) -> None:
    no_key: dict[str, Any] = {"security": []}

    @app.get("/healthz", tags=["health"], summary="Whether the gateway runs", openapi_extra=no_key)
    @open_to_all
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/readyz", tags=["health"], summary="Whether every pipeline answers", openapi_extra=no_key
    )
    @open_to_all
    async def readyz(response: Response) -> dict[str, Any]:
        pipelines = readiness(gateway)
        ready = not any(pipelines.values())
        response.status_code = 200 if ready else 503
        shown = {
            name: fault or ("unproved" if name in gateway.unproved else "ready")
            for name, fault in pipelines.items()
        }
        return {"status": "ready" if ready else "not ready", "pipelines": shown}


class Description:
    """The OpenAPI document, which follows the catalogue and shows a caller what is theirs."""

    def __init__(self, app: FastAPI, gateway: Gateway) -> None:
        self.app, self.gateway = app, gateway
        self._base: dict[str, Any] = {}
        self._rendered: dict[str, dict[str, Any]] = {}

    def route(self) -> Route:
        return Route("/openapi.json", Endpoint(self.show), methods=["GET"])

    @open_to_all  # gateway.http.edge asks for an identity where the documentation is not open
    async def show(self, exchange: Exchange) -> Reply:
        if not self._base:
            routes = self.app.routes
            self._base = get_openapi(title=TITLE, version=VERSION, routes=routes)
        mine = self.gateway.catalogue.restricted_to(exchange.may_read)
        if mine.digest not in self._rendered:
            if len(self._rendered) >= DOCUMENTS:
                self._rendered.clear()
            self._rendered[mine.digest] = describe(self._base, mine)
        return json_reply(self._rendered[mine.digest])


async def _shown(request: Request, error: Exception) -> Response:
    """The framework's own 404 and 405, and whatever failed in it, as the taxonomy's."""
    path = request.url.path
    fault = error if isinstance(error, GatewayError) else _translated(request.method, path, error)
    reply = error_reply(fault, path, request.scope["exchange"].request_id)
    headers = {name.decode(): value.decode() for name, value in reply.headers}
    return Response(reply.body, reply.status, headers, reply.content_type.decode())


def _translated(method: str, path: str, error: Exception) -> GatewayError:
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return WrongMethod(f"{method} is not for {path}: use {allowed}")
    if isinstance(error, HTTPException) and error.status_code == 404:
        return unknown_path(path)
    return Internal("the gateway failed: report the request id")
