"""The gateway as an ASGI application: assembles its APIs."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from gateway.api.admin.health import health_router
from gateway.api.openai.embeddings import EmbeddingsApi
from gateway.api.openai.models import models_router
from gateway.api.openapi.docs_pages import docs_router
from gateway.api.openapi.document import describe
from gateway.api.tasks.pipelines import pipelines_router
from gateway.api.tasks.routes import TaskApi
from gateway.api.v2.routes import V2Api
from gateway.background import Background, readiness
from gateway.core import Gateway
from gateway.draining import DRAIN
from gateway.errors import GatewayError, Internal, MethodNotAllowed
from gateway.heartbeat import SOCKET, heartbeat
from gateway.http.control import ControlRoute, CurrentContext, routes_of
from gateway.http.handler import Handler, LateEndpoint, open_to_all
from gateway.http.json_body import to_json
from gateway.logs import set_up
from gateway.middleware import Middleware, unknown_path
from gateway.render import COHERE_PATH, error_reply
from gateway.settings import Settings
from gateway.upstream.replicas import CHECK_S
from gateway.workers import end_with_parent

if TYPE_CHECKING:
    from gateway.api.openai.completions import CompletionsApi
    from gateway.api.openai.tokenization import TokenizationApi
    from gateway.api.tasks.rerank import RerankApi
    from gateway.api.v2.generate import GenerateApi

TITLE = "Tidegate"
VERSION = "0.1.0"
# The longest that the loop waits for a thread that parses a large body (http/off_loop.py): with
# Python's default of 5 ms, the p99 of everybody else rose from 0.2 to 14 ms meanwhile.
SWITCH_S = 0.0005
FIRST_CATALOGUE_S = 3.0  # how long a worker waits for its first catalogue before it starts serving
DOCUMENTS = 64  # OpenAPI documents cached: one per set of models that callers may see


def create_app(settings: Settings) -> Middleware:
    """The application, configured by ``settings`` alone."""
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
    health = routes_of(health_router(gateway))
    pipelines = routes_of(pipelines_router(gateway))
    apis = [
        *health,
        *routes_of(docs_router()),
        *routes_of(_description_router(gateway, [*health, *pipelines])),
        *routes_of(models_router(gateway)),
        *pipelines,
        *_late_routes(gateway),
        *V2Api(gateway).routes(),
        *EmbeddingsApi(gateway).routes(),
        *TaskApi(gateway).routes(),
    ]
    app.router.routes.extend(apis)
    app.add_exception_handler(Exception, _error_response)
    app.add_exception_handler(HTTPException, _error_response)
    # Not with ``add_middleware``: some of the framework's layers would then be outside of it.
    return Middleware(app, gateway, apis)


def from_environment() -> Middleware:
    """Called by each uvicorn worker, in its own process if there are several."""
    set_up()
    end_with_parent()
    return create_app(Settings.read(os.environ))


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    gateway: Gateway = app.state.gateway
    sys.setswitchinterval(SWITCH_S)
    if gateway.request_log:
        gateway.request_log.start()
    background = Background(gateway)
    # Keys and models must have been read before the first request.
    await gateway.access_control.open()
    gateway.follow_policy()
    if gateway.response_cache:
        await gateway.response_cache.open()
    if gateway.shared_drains:
        await gateway.shared_drains.open()
    await _read_first_catalogue(background)
    gateway.supervisor.open()
    background.start()
    listener_name = os.environ.get(SOCKET)
    if listener_name:
        gateway.supervisor.run(
            "heartbeat",
            lambda: heartbeat(listener_name, lambda: not any(readiness(gateway).values())),
        )
    listeners = _listeners(gateway)
    for name, listener in listeners.items():
        await listener.start()
        gateway.supervisor.run(name, listener.serve)
    DRAIN.refusers.append(gateway.refuse_waiting)
    try:
        yield
    finally:
        DRAIN.refusers.remove(gateway.refuse_waiting)
        await gateway.supervisor.close()  # first: it must not restart what ends from now on
        for listener in reversed(listeners.values()):
            await listener.stop()
        if gateway.shadows:
            await gateway.shadows.close()
        await gateway.sources.close()
        await gateway.pool.close()
        await gateway.access_control.close()
        if gateway.response_cache:
            await gateway.response_cache.close()
        if gateway.shared_drains:
            await gateway.shared_drains.close()
        if gateway.request_log:
            await asyncio.to_thread(gateway.request_log.close)
        if gateway.tracing:
            await asyncio.to_thread(gateway.tracing.close)


class Listener(Protocol):
    """A port in addition to the one that uvicorn listens on."""

    async def start(self) -> object: ...

    async def serve(self) -> None: ...

    async def stop(self) -> None: ...


def _listeners(gateway: Gateway) -> dict[str, Listener]:
    """The listeners that the settings turn on; only these are imported."""
    settings = gateway.settings
    listeners: dict[str, Listener] = {}
    if settings.admin_port:
        from gateway.api.admin.listener import AdminListener

        listeners["admin"] = AdminListener(gateway, settings.admin_port)
    if settings.grpc_port:
        from gateway.api.grpc.server import GrpcServer

        listeners["grpc"] = GrpcServer(gateway, settings.grpc_port)
    return listeners


def _late_routes(gateway: Gateway) -> list[Route]:
    """Routes that many gateways never serve: their APIs are imported at the first call."""

    @cache
    def generate() -> "GenerateApi":
        from gateway.api.v2.generate import GenerateApi

        return GenerateApi(gateway)

    @cache
    def completions() -> "CompletionsApi":
        from gateway.api.openai.completions import CompletionsApi

        return CompletionsApi(gateway)

    @cache
    def tokenization() -> "TokenizationApi":
        from gateway.api.openai.tokenization import TokenizationApi

        return TokenizationApi(gateway)

    @cache
    def relevance() -> "RerankApi":
        from gateway.api.tasks.rerank import RerankApi

        return RerankApi(gateway)

    def decide() -> Handler:
        from gateway.api.grpc.nginx import NginxApi

        return NginxApi(gateway).decide

    model = "/v2/models/{model}"
    generate_routes: list[tuple[str, str, Callable[[], Handler]]] = [
        ("POST", "generate", lambda: generate().generate),
        ("POST", "generate_stream", lambda: generate().generate_stream),
        ("GET", "config", lambda: generate().config),
        ("GET", "stats", lambda: generate().stats),
    ]
    table: list[tuple[str, str, Callable[[], Handler]]] = [
        # Before V2's own routes: here "stats" is not the name of a model.
        ("GET", "/v2/models/stats", lambda: generate().every_stats),
        *(
            (method, f"{prefix}/{name}", handler)
            for method, name, handler in generate_routes
            for prefix in (model, model + "/versions/{version}")
        ),
        ("POST", "/v1/chat/completions", lambda: completions().chat),
        ("POST", "/v1/completions", lambda: completions().completions),
        ("POST", "/v1/responses", lambda: completions().responses),
        ("POST", "/v1/rerank", lambda: relevance().rerank),
        ("POST", COHERE_PATH, lambda: relevance().rerank),
        ("POST", "/v1/score", lambda: relevance().score),
        ("POST", "/tokenize", lambda: tokenization().tokenize),
        ("POST", "/detokenize", lambda: tokenization().detokenize),
        ("GET", "/internal/decide", decide),
    ]
    return [Route(path, LateEndpoint(handler), methods=[method]) for method, path, handler in table]


async def _read_first_catalogue(background: Background) -> None:
    """Read the catalogue, and retry soon if no server responds: a worker that takes requests
    without one would refuse what the others serve."""
    gateway, deadline = background.gateway, time.monotonic() + FIRST_CATALOGUE_S
    while True:
        await gateway.sources.refresh()
        await background.check_replicas()
        await background.refresh_catalogue()
        if gateway.reader.read_at > 0 or time.monotonic() > deadline:
            return
        await asyncio.sleep(CHECK_S)


def _description_router(gateway: Gateway, control_routes: Sequence[Route]) -> APIRouter:
    """The OpenAPI document, which follows the catalogue and shows callers only their models."""
    router = APIRouter(route_class=ControlRoute, include_in_schema=False)
    rendered: dict[str, bytes] = {}

    @router.get("/openapi.json")
    @open_to_all  # the middleware requires an identity if the documentation is not open
    async def openapi(context: CurrentContext) -> Response:
        catalogue = gateway.catalogue.restricted_to(context.may_read)
        if catalogue.digest not in rendered:
            if len(rendered) >= DOCUMENTS:
                rendered.clear()
            document = describe(TITLE, VERSION, catalogue, control_routes)
            rendered[catalogue.digest] = to_json(document)
        return Response(rendered[catalogue.digest], media_type="application/json")

    return router


async def _error_response(request: Request, error: Exception) -> Response:
    """The framework's own 404s, 405s and failures, rendered as gateway errors."""
    path = request.url.path
    if not isinstance(error, GatewayError):
        error = _to_gateway_error(request.method, path, error)
    reply = error_reply(error, path, request.scope["context"].request_id)
    headers = {name.decode(): value.decode() for name, value in reply.headers}
    return Response(reply.body, reply.status, headers, reply.content_type.decode())


def _to_gateway_error(method: str, path: str, error: Exception) -> GatewayError:
    if isinstance(error, HTTPException) and error.status_code == 405:
        return MethodNotAllowed(f"{path} does not take {method}: use GET", ("GET", "HEAD"))
    if isinstance(error, HTTPException) and error.status_code == 404:
        return unknown_path(path)
    return Internal("the gateway failed: report the request id")
