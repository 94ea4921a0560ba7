"""The gateway as an ASGI application: the doors, put together."""

import asyncio
import contextlib
import gc
import os
import sys
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from gateway.addons import ROUTES, load
from gateway.beat import SOCKET, beat
from gateway.core import Gateway
from gateway.doors.docs_pages import DocsPages
from gateway.doors.embeddings import OpenAIDoor
from gateway.doors.health import HealthDoor
from gateway.doors.openapi import describe
from gateway.doors.task import TaskDoor
from gateway.doors.v2 import V2Door
from gateway.errors import GatewayError, Internal, WrongMethod
from gateway.http.edge import Edge, unknown_path
from gateway.http.endpoint import Endpoint, LateEndpoint, Reply, json_reply, open_to_all
from gateway.http.exchange import Exchange
from gateway.http.render import error_reply
from gateway.logs import set_up
from gateway.probes import Background, readiness
from gateway.replicas import CHECK_S
from gateway.settings import Settings
from gateway.workers import end_with_parent

TITLE = "Tidegate"
VERSION = "0.1.0"
# The loop waits no longer than that for a thread that reads a large body (http/off_loop.py): with
# Python's own 5 ms, the p99 of everybody else rose from 0.2 to 14 ms meanwhile.
SWITCH_S = 0.0005
FIRST_LOOK_S = 3.0  # how long a worker waits for the first catalogue before it serves without one
DOCUMENTS = 64  # descriptions kept: one for each set of models that callers may see


def create_app(settings: Settings) -> Edge:
    """The application; everything that it needs is in ``settings``."""
    app = FastAPI(
        title=TITLE,
        version=VERSION,
        lifespan=_lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    gateway = Gateway(settings)
    app.state.gateway = gateway
    doors = [
        *HealthDoor(gateway).routes(),
        *DocsPages().routes(),
        Description(gateway).route(),
        *(
            Route(path, LateEndpoint(gateway, addon, handler), methods=[method])
            for method, path, addon, handler in ROUTES
        ),
        *V2Door(gateway).routes(),
        *OpenAIDoor(gateway).routes(),
        *TaskDoor(gateway).routes(),
    ]
    app.router.routes.extend(doors)
    app.add_exception_handler(Exception, _shown)
    app.add_exception_handler(HTTPException, _shown)
    # Not by ``add_middleware``: some of the framework's layers would be outside of it.
    return Edge(app, gateway, doors)


def from_environment() -> Edge:
    """What each uvicorn worker calls, in a process of its own if there are several."""
    set_up()
    end_with_parent()
    return create_app(Settings.read(os.environ))


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    gateway: Gateway = app.state.gateway
    sys.setswitchinterval(SWITCH_S)
    background = Background(gateway)
    # The first request must find the keys and the models read.
    await gateway.guard.open()
    gateway.follow_policy()
    await _first_look(background)
    gateway.supervisor.open()
    background.start()
    listener_name = os.environ.get(SOCKET)
    if listener_name:
        gateway.supervisor.run(
            "beat", lambda: beat(listener_name, lambda: not any(readiness(gateway).values()))
        )
    settings = gateway.settings
    wanted = {"admin": settings.admin_port, "grpc_door": settings.grpc_port}
    listeners = {name: load(name)(gateway, port) for name, port in wanted.items() if port}
    for name, listener in listeners.items():
        await listener.start()
        gateway.supervisor.run(name, listener.serve)
    gc.freeze()  # what lives for ever need not be looked at again and again
    try:
        yield
    finally:
        await gateway.supervisor.close()  # first: what ends from now on should end
        for listener in reversed(listeners.values()):
            await listener.stop()
        await gateway.pool.close()
        await gateway.guard.close()


async def _first_look(background: Background) -> None:
    """Read the catalogue, and where no server answers, soon again: a worker that takes requests
    without one refuses what the others serve."""
    gateway, until = background.gateway, time.monotonic() + FIRST_LOOK_S
    while True:
        await background.check_replicas()
        await background.refresh_catalogue()
        if gateway.reader.read_at > 0 or time.monotonic() > until:
            return
        await asyncio.sleep(CHECK_S)


class Description:
    """The OpenAPI document, which follows the catalogue and shows a caller what is theirs."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._rendered: dict[str, Reply] = {}

    def route(self) -> Route:
        return Route("/openapi.json", Endpoint(self.show), methods=["GET"])

    @open_to_all  # gateway.http.edge asks for an identity where the documentation is not open
    async def show(self, exchange: Exchange) -> Reply:
        mine = self.gateway.catalogue.restricted_to(exchange.may_read)
        if mine.digest not in self._rendered:
            if len(self._rendered) >= DOCUMENTS:
                self._rendered.clear()
            self._rendered[mine.digest] = json_reply(describe(TITLE, VERSION, mine))
        shown = self._rendered[mine.digest]
        return Reply(200, shown.body)


async def _shown(request: Request, error: Exception) -> Response:
    """The framework's own 404 and 405, and whatever failed in it, as the taxonomy's."""
    path = request.url.path
    fault = error if isinstance(error, GatewayError) else _translated(request.method, path, error)
    reply = error_reply(fault, path, request.scope["exchange"].request_id)
    headers = {name.decode(): value.decode() for name, value in reply.headers}
    return Response(reply.body, reply.status, headers, reply.content_type.decode())


def _translated(method: str, path: str, error: Exception) -> GatewayError:
    if isinstance(error, HTTPException) and error.status_code == 405:
        return WrongMethod(f"{method} is not for {path}: use GET", ("GET", "HEAD"))
    if isinstance(error, HTTPException) and error.status_code == 404:
        return unknown_path(path)
    return Internal("the gateway failed: report the request id")
