"""The outermost ASGI layer: request id, identity, errors and timing, for every API alike.

FastAPI's own layers (errors, telemetry) come after it, and only for routes that are not an API's.
"""

import logging
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.core import Gateway
from gateway.errors import GatewayError, Internal, MethodNotAllowed, NotFound
from gateway.http.bounded import ConnectionLimits
from gateway.http.cors import Cors
from gateway.http.request_context import ClientGone, RequestContext
from gateway.limits.limiter import LimitReached
from gateway.render import CLIENT_LEFT, SHOWN_PATH, Reply, api_name, api_of, error_reply, status_of
from modelspec.names import NOT_OFFERED_OPENAI

log = logging.getLogger("gateway")
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz"})
# The documentation pages hold no names; /openapi.json, which they show, may need a key.
STATIC = "/static-offline-docs/"
PAGE_PATHS = frozenset({"/docs", "/docs/docs.js", "/redoc"})
# Routes cached, and the longest path that is: clients may invent any number of paths.
MATCHED, MATCHED_PATH = 256, 512
_Matched = tuple[ASGIApp, Scope, str, str]  # the strings: the route's template, its API's name
# What OpenAI offers under /v1, and other V2 servers under /v2, but the gateway does not. The error
# says so: the client asks for something that exists elsewhere.
NOT_OFFERED = {
    "/v1/": NOT_OFFERED_OPENAI,
    "/v2/": frozenset(
        {
            "cudasharedmemory",
            "logging",
            "repository",
            "systemsharedmemory",
            "tpusharedmemory",
            "trace",
        }
    ),
}


class Middleware:
    """Gives each request a ``RequestContext``, identifies the caller, and renders errors."""

    def __init__(self, app: Starlette, gateway: Gateway, apis: Sequence[Route]) -> None:
        self.app, self.apis = app, apis
        self.gateway, self.access_control = gateway, gateway.access_control
        settings = gateway.settings
        self.connection_limits = ConnectionLimits(settings.send_timeout_s)
        self._cors = Cors(settings.cors_origins) if settings.cors_origins else None
        self._matched: dict[tuple[str, str], _Matched] = {}  # by method and path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._lifespan(scope, receive, send)
            return
        scope["context"] = context = self.gateway.context(scope, receive)
        response = _Response(context, send, self._cors)
        try:
            preflight = self._cors and self._cors.preflight(scope["method"], context.headers)
            if preflight:
                await Reply(204, b"", headers=preflight).send(response)
                return
            if not self._is_open(context.path):
                await self.access_control.identify(context)
            await self._route(scope, receive, response)
        except ClientGone:
            response.status = CLIENT_LEFT
            log.info("%s client left %r", context.request_id, context.path)
        except LimitReached as error:
            context.limit_headers = error.headers
            await response.fail(error)
        except GatewayError as error:
            await response.fail(error)
        except Exception:
            log.exception("%s %r failed", context.request_id, context.path)
            await response.fail(Internal("the gateway failed: report the request id"))
        finally:
            if context.buffered_bytes:
                context.release_buffered()
            status = response.outcome()
            if not context.api:
                context.api = api_name(context.path)
            self.gateway.finished(context, status)
            if context.principal or status == 401:
                self.access_control.record(context, status)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            raise RuntimeError("the gateway speaks HTTP only")
        await self.app(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the matching API route directly: the framework's layers in between add nothing."""
        context: RequestContext = scope["context"]
        path = context.path
        key = scope["method"], path
        matched = self._matched.get(key)
        if matched is None:
            matched = self._match(scope)
            if matched is None:
                await self._unmatched(scope, send)
                return
            if len(path) <= MATCHED_PATH:
                if len(self._matched) >= MATCHED:
                    self._matched.clear()
                self._matched[key] = matched
        endpoint, child_scope, context.route, context.api = matched
        scope.update(child_scope)
        await endpoint(scope, receive, send)

    def _match(self, scope: Scope) -> _Matched | None:
        # HEAD is GET without the body, which the server leaves out: it looks at the scope's method.
        get_scope = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        is_offered = self._is_offered(scope["path"])
        for route in self.apis:
            match, child_scope = route.matches(get_scope)
            if match is Match.FULL and (is_offered or "{" not in route.path):
                return route.app, child_scope, route.path, api_name(route.path)
        return None

    async def _unmatched(self, scope: Scope, send: Send) -> None:
        """Answer OPTIONS; otherwise raise NotFound or MethodNotAllowed."""
        path, method = scope["path"], scope["method"]
        if path == "*" and method == "OPTIONS":
            await _options(["GET", "POST"]).send(send)
            return
        if not self._is_offered(path):
            raise NotFound(
                f"{path[:SHOWN_PATH]} is not offered through the gateway: see /docs for what there "
                "is"
            )
        methods = self._methods(scope)
        if method == "OPTIONS" and methods:
            await _options(methods).send(send)
        elif methods:
            raise MethodNotAllowed(
                f"{path[:SHOWN_PATH]} does not take {method}: use {' or '.join(methods)}",
                _allowed(methods),
            )
        else:
            raise unknown_path(path)

    def _methods(self, scope: Scope) -> list[str]:
        """The methods that this path supports; GET stands for GET and HEAD."""
        methods: set[str] = set()
        for route in self.apis:
            match, child_scope = route.matches(scope)
            if match is not Match.NONE and self._is_there(scope, child_scope["path_params"]):
                methods |= route.methods or set()
        return sorted(methods - {"HEAD"})

    def _is_there(self, scope: Scope, params: dict[str, str]) -> bool:
        """Whether a task route's path names a task that the caller may know about: a 405 for a
        path for which POST says 404 would be confusing."""
        endpoint = params.get("endpoint")
        if endpoint is None:
            return True
        known = {model.name for model in self.gateway.catalogue.public if not model.decoupled}
        context: RequestContext = scope["context"]
        return endpoint in known and context.may_read(endpoint)

    def _is_offered(self, path: str) -> bool:
        prefix, rest = path[:4], path[4:]
        if prefix == "/v2/" and path.endswith("/trace/setting"):
            return False  # of one model
        names = NOT_OFFERED.get(prefix)
        if names is None or rest.partition("/")[0] not in names:
            return True
        return prefix == "/v1/" and rest in self.gateway.catalogue.models

    def _is_open(self, path: str) -> bool:
        if path in OPEN_PATHS or path in PAGE_PATHS or path.startswith(STATIC):
            return True
        # With tenants, the list of models is nobody's business but theirs.
        return (
            path == "/openapi.json"
            and self.gateway.settings.open_docs
            and not self.access_control.policy.current.rules.tenants
        )


def _allowed(methods: Sequence[str]) -> list[str]:
    return [*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"]


def _options(methods: Sequence[str]) -> Reply:
    return Reply(204, b"", headers=[(b"allow", ", ".join(_allowed(methods)).encode())])


class _Response:
    """``send`` that adds the request id and the timing, and knows whether it has started."""

    __slots__ = ("context", "cors", "has_started", "send", "status")

    def __init__(self, context: RequestContext, send: Send, cors: Cors | None = None) -> None:
        self.context, self.send, self.cors = context, send, cors
        self.has_started = False
        self.status = CLIENT_LEFT

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started, self.status = True, message["status"]
            message["headers"] = [*message["headers"], *self._headers()]
        await self.send(message)

    def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """As ``request_context.Connection.respond``, with the same additions."""
        connection = self.context.connection
        if connection is None or not connection.respond(status, headers + self._headers(), body):
            return False
        self.has_started, self.status = True, status
        return True

    async def fail(self, error: GatewayError) -> None:
        if self.has_started:
            self.context.fault = error
            raise error  # too late for an error response: the server closes the connection
        context = self.context
        await error_reply(error, context.path, context.request_id).send(self)

    def outcome(self) -> int:
        """The status that it really ended with: a stream that fails midway began with a 200."""
        fault = self.context.fault
        return status_of(fault, api_of(self.context.path)) if fault else self.status

    def _headers(self) -> list[tuple[bytes, bytes]]:
        context = self.context
        headers = [
            *context.limit_headers,
            (b"x-request-id", context.request_id.encode()),
            (b"server-timing", context.server_timing().encode()),
        ]
        if self.cors:
            headers += self.cors.response_headers(context.headers)
        if context.fallback:
            headers.append((b"x-tidegate-model", context.fallback.encode()))
        return headers


def unknown_path(path: str) -> NotFound:
    return NotFound(f"there is no {path[:SHOWN_PATH]}: see /docs for what there is")
