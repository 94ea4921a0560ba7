"""The outermost ASGI layer: request id, identity, errors and timing, for every door alike.

FastAPI's own layers (errors, telemetry) begin behind it, and only for what is no door.
"""

import logging
import time
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.core import Gateway
from gateway.errors import GatewayError, Internal, NotFound
from gateway.http.exchange import ClientGone, Exchange
from gateway.http.render import CLIENT_LEFT, door_of, error_reply, status_of
from gateway.limits.limiter import LimitReached

log = logging.getLogger("gateway")
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz"})
MATCHED = 256  # paths are the clients' to invent
_Matched = tuple[ASGIApp, Scope]
DOC_PATHS = ("/docs", "/redoc", "/openapi.json", "/static-offline-docs/")


class Edge:
    """Gives each request an ``Exchange``, lets in who has a key, renders what goes wrong."""

    def __init__(self, app: Starlette, gateway: Gateway, doors: Sequence[Route]) -> None:
        self.app, self.doors = app, doors
        self.gateway, self.guard = gateway, gateway.guard
        self._matched: dict[tuple[str, str], _Matched] = {}  # by method and path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError("the gateway speaks HTTP only")
        scope["exchange"] = exchange = self.gateway.exchange(scope, receive)
        answer = _Answer(exchange, send)
        try:
            if not self._is_open(exchange.path):
                await self.guard.identify(exchange)
            await self._route(scope, receive, answer)
        except ClientGone:
            answer.status = CLIENT_LEFT
            log.info("%s client left %r", exchange.request_id, exchange.path)
        except LimitReached as error:
            exchange.limit_headers = error.headers
            await answer.fail(error)
        except GatewayError as error:
            await answer.fail(error)
        except Exception:
            log.exception("%s %r failed", exchange.request_id, exchange.path)
            await answer.fail(Internal("the gateway failed: report the request id"))
        finally:
            status = answer.outcome()
            self.gateway.metrics.record(exchange, status, self.gateway.catalogue)
            if exchange.principal or status == 401:
                self.guard.record(exchange, status)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """To a door at once, where one fits: the framework's layers between add nothing to it."""
        target = scope["method"], scope["path"]
        matched = self._matched.get(target) or self._match(scope)
        if matched is None:
            await self.app(scope, receive, send)
            return
        if len(self._matched) >= MATCHED:
            self._matched.clear()
        self._matched[target] = matched
        door, found = matched
        scope.update(found)
        await door(scope, receive, send)

    def _match(self, scope: Scope) -> _Matched | None:
        for route in self.doors:
            match, found = route.matches(scope)
            if match is Match.FULL:
                return route.app, found
        return None

    def _is_open(self, path: str) -> bool:
        if path in OPEN_PATHS:
            return True
        # With tenants, what there is is nobody's business but theirs.
        open_docs = self.gateway.settings.open_docs and not self.guard.policy.current.rules.tenants
        return open_docs and path.startswith(DOC_PATHS)


class _Answer:
    """``send`` with the request id and the timing added, and whether it has begun."""

    __slots__ = ("begun", "exchange", "send", "status")

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self.exchange, self.send, self.begun = exchange, send, False
        self.status = CLIENT_LEFT

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
            message["headers"] = [*message["headers"], *self._headers()]
        await self.send(message)

    async def fail(self, error: GatewayError) -> None:
        if self.begun:
            self.exchange.fault = error
            raise error  # too late for an answer: the server closes the connection
        exchange = self.exchange
        await error_reply(error, exchange.path, exchange.request_id).send(self)

    def outcome(self) -> int:
        """How it really ended: a stream that fails in the middle has said 200 long before."""
        fault = self.exchange.fault
        return status_of(fault, door_of(self.exchange.path)) if fault else self.status

    def _headers(self) -> list[tuple[bytes, bytes]]:
        exchange = self.exchange
        total_ms = (time.perf_counter() - exchange.started) * 1e3
        upstream_ms = exchange.upstream_s * 1e3
        timing = f"gateway;dur={total_ms - upstream_ms:.2f}, upstream;dur={upstream_ms:.2f}"
        return [
            *exchange.limit_headers,
            (b"x-request-id", exchange.request_id.encode()),
            (b"server-timing", timing.encode()),
        ]


def unknown_path(path: str) -> NotFound:
    return NotFound(f"there is no {path}: see /docs for what there is")
