"""Control routes: ordinary FastAPI routes, which document themselves, under the gateway's policy.

    router = APIRouter(route_class=ControlRoute)

    @router.get("/admin/replicas")
    @needs("admin")
    async def replicas() -> Replicas: ...

Inference routes are plain ASGI endpoints instead (``gateway.http.handler``), for speed.
"""

import contextlib
import sys
from collections.abc import Callable, Coroutine, Iterator
from types import ModuleType
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.http.handler import OPEN, declared
from gateway.http.request_context import RequestContext


def routes_of(router: APIRouter) -> list[Route]:
    """The router's routes, for ``gateway.middleware``."""
    return [route for route in router.routes if isinstance(route, Route)]


class ControlRoute(APIRoute):
    """Checks what its handler declares with ``needs``; raises Undeclared if it declares nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        with _without_pydantic_v1():
            super().__init__(*arguments, **options)
        # The gateway's middleware calls a route's app without FastAPI's own layers, of which this
        # is the one that a route needs.
        self.app = AsyncExitStackMiddleware(self.app)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, policy = super().get_route_handler(), declared(self.endpoint)

        async def checked(request: Request) -> Response:
            if policy != OPEN:
                context: RequestContext = request.scope["context"]
                context.require(policy.action, request.path_params.get(policy.model, ""))
            return await handle(request)

        return checked


@contextlib.contextmanager
def _without_pydantic_v1() -> Iterator[None]:
    """FastAPI imports all of ``pydantic.v1`` to see that a response model is not one of its models:
    40 ms at the start of each worker. Where it cannot be imported, FastAPI does without."""
    if "pydantic.v1" in sys.modules:
        yield
        return
    sys.modules["pydantic.v1"] = cast(ModuleType, None)  # an import of it raises ImportError
    try:
        yield
    finally:
        del sys.modules["pydantic.v1"]


async def _context(request: Request) -> RequestContext:
    context: RequestContext = request.scope["context"]
    return context


# For a handler's parameter: ``async def show(context: CurrentContext) -> ...``
CurrentContext = Annotated[RequestContext, Depends(_context)]
