"""The outermost ASGI layer: request id, identity, errors and timing, for every door alike."""

import logging
import time
from collections.abc import Sequence

from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import GatewayError, Internal, NotFound
from gateway.exchange import ClientGone, Exchange
from gateway.keys import KeyRing
from gateway.render import error_reply
from gateway.settings import Settings

log = logging.getLogger("gateway")
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz"})
DOC_PATHS = ("/docs", "/redoc", "/openapi.json", "/static-offline-docs/")


class Edge:
    """Gives each request an ``Exchange``, lets in who has a key, renders what goes wrong."""

    def __init__(
        self, app: ASGIApp, settings: Settings, keys: KeyRing, doors: Sequence[Route] = ()
    ) -> None:
        self.app, self.settings, self.keys = app, settings, keys
        self.doors: dict[str, list[Route]] = {}  # by method: most of them are GET
        for route in doors:
            for method in route.methods or ():
                self.doors.setdefault(method, []).append(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError("the gateway speaks HTTP only")
        limit, deadline = self.settings.body_limit_bytes, self.settings.deadline_s
        exchange = Exchange(scope, receive, limit, deadline)
        scope["exchange"] = exchange
        answer = _Answer(exchange, send)
        try:
            if not self._is_open(exchange.path):
                exchange.principal = self.keys.verify(exchange.headers.get(b"authorization"))
            await self._route(scope, receive, answer)
        except ClientGone:
            log.info("%s client left %s", exchange.request_id, exchange.path)
        except GatewayError as error:
            await answer.fail(error)
        except Exception:
            log.exception("%s %s failed", exchange.request_id, exchange.path)
            await answer.fail(Internal("the gateway failed: report the request id"))

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """To a door at once, where one fits: the framework's layers between add nothing to it."""
        for route in self.doors.get(scope["method"], ()):
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                await route.app(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in OPEN_PATHS or (self.settings.open_docs and path.startswith(DOC_PATHS))


class _Answer:
    """``send`` with the request id and the timing added, and whether it has begun."""

    __slots__ = ("begun", "exchange", "send")

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self.exchange, self.send, self.begun = exchange, send, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            message["headers"] = [*message["headers"], *self._headers()]
        await self.send(message)

    async def fail(self, error: GatewayError) -> None:
        if self.begun:
            raise error  # too late for an answer: the server closes the connection
        exchange = self.exchange
        await error_reply(error, exchange.path, exchange.request_id).send(self)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        exchange = self.exchange
        total_ms = (time.perf_counter() - exchange.started) * 1e3
        upstream_ms = exchange.upstream_s * 1e3
        timing = f"gateway;dur={total_ms - upstream_ms:.2f}, upstream;dur={upstream_ms:.2f}"
        return [
            (b"x-request-id", exchange.request_id.encode()),
            (b"server-timing", timing.encode()),
        ]


def unknown_path(path: str) -> NotFound:
    return NotFound(f"there is no {path}: see /docs for what there is")
