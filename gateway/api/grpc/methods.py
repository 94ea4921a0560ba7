"""The unary methods. Each parses its own message and authorises the model named in it."""

import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2

from gateway.api.grpc.request import check_request, timeout_s
from gateway.api.grpc.response import metered, request_token_counts, version_of, with_id
from gateway.api.grpc.wire import RequestParts
from gateway.api.v2.describe_model import check_readable, hide_paths, readable_statistics
from gateway.api.v2.routes import EXTENSIONS, NAME
from gateway.background import readable_readiness
from gateway.core import Gateway
from gateway.errors import InvalidRequest, NoCapacity, NotFound, no_model
from gateway.http.handler import needs
from gateway.http.request_context import RequestContext
from gateway.models.catalogue import Model
from gateway.policy.access import MAX_NAME
from gateway.upstream.server import Upstream

if TYPE_CHECKING:
    from gateway.response_cache.key import CacheScope

Handler = Callable[[RequestContext, bytes], Awaitable[bytes]]


class Methods:
    """``table`` has the methods offered: any other method is refused."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def table(self) -> dict[str, Handler]:
        return {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ServerMetadata": self.server_metadata,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "ModelInfer": self.infer,
        }

    @needs("infer")
    async def infer(self, context: RequestContext, data: bytes) -> bytes:
        parts = parse_request(self.gateway, context, data)
        context.body_bytes = len(data)
        model = permitted_model(self.gateway, context, "infer", parts.header)
        if model.decoupled:
            raise InvalidRequest(f"model {model.name!r} streams: call it with ModelStreamInfer")
        context.shorten_deadline(timeout_s(parts))
        check_request(parts, model)
        self.gateway.sequences.put_own(parts.header, context.tenant)
        parts.header.model_name = self.gateway.serving(context, model, parts.header)
        admission = await context.enter(self.gateway.access_control.admit(context, model))
        meter = self.gateway.access_control.meter(context, admission, model)
        if meter:
            request_token_counts(parts, meter)

        async def send(upstream: Upstream) -> bytes:
            timeout = context.remaining_s()
            context.sent_to(upstream.address)
            admission.started()
            started = time.perf_counter()
            try:
                return await upstream.infer_raw(parts.message(), timeout)
            finally:
                context.upstream_s += time.perf_counter() - started

        gateway = self.gateway
        scope = gateway.cache_scope(context, parts.header) if gateway.response_cache else None
        if scope:
            response = await self._cached(context, model, parts, scope, send)
        else:
            response = await gateway.send(context, model, parts.header, send)
            context.version = version_of(response)
        if context.shadow and context.sent_at:
            context.shadow.answered(parts.message(), response, context.upstream_s)
        return metered(response, meter) if meter else response

    async def _cached(
        self,
        context: RequestContext,
        model: Model,
        parts: RequestParts,
        scope: "CacheScope",
        send: Callable[[Upstream], Coroutine[object, object, bytes]],
    ) -> bytes:
        """The response from the response cache, else from ``send``; with the request's id."""
        from gateway.response_cache.cache import CachedResponse
        from gateway.response_cache.key import key_of

        header = parts.header
        key = await self.gateway.work(context, lambda: key_of(scope, header, parts.elements()))
        identifier, header.id = header.id, ""

        async def ask() -> CachedResponse:
            response = await self.gateway.send(context, model, header, send)
            return CachedResponse(version_of(response), response)

        return with_id(await self.gateway.cached(context, scope, key, ask), identifier)

    @needs("read")
    async def server_live(self, context: RequestContext, data: bytes) -> bytes:
        return _bytes(service_pb2.ServerLiveResponse(live=True))

    @needs("read")
    async def server_ready(self, context: RequestContext, data: bytes) -> bytes:
        ready = not any(readable_readiness(self.gateway, context).values())
        return _bytes(service_pb2.ServerReadyResponse(ready=ready))

    @needs("read")
    async def server_metadata(self, context: RequestContext, data: bytes) -> bytes:
        return _bytes(
            service_pb2.ServerMetadataResponse(name=NAME, version="2", extensions=EXTENSIONS)
        )

    @needs("read")
    async def model_ready(self, context: RequestContext, data: bytes) -> bytes:
        """Ready if Triton says so and the last golden probe passed.

        A model that does not exist, or is not the caller's, is not ready: Triton has no error for
        this.
        """
        request = _named(data)
        try:
            model = permitted_model(self.gateway, context, "read", request)
        except (NotFound, NoCapacity):
            return _bytes(service_pb2.ModelReadyResponse(ready=False))
        fault = self.gateway.probes.get(model.name)
        if fault:
            return _bytes(service_pb2.ModelReadyResponse(ready=False))
        response = await self.gateway.describe(context, "ModelReady", model.name, request.version)
        return _bytes(service_pb2.ModelReadyResponse(ready=response.ready))

    @needs("read")
    async def model_metadata(self, context: RequestContext, data: bytes) -> bytes:
        return await self._describe("ModelMetadata", context, _named(data))

    @needs("read")
    async def model_config(self, context: RequestContext, data: bytes) -> bytes:
        return await self._describe("ModelConfig", context, _named(data))

    @needs("read")
    async def model_statistics(self, context: RequestContext, data: bytes) -> bytes:
        """Statistics of one model; without a name, of every model that the caller may read."""
        request = _named(data)
        if request.name:
            return await self._describe("ModelStatistics", context, request)
        statistics = await self.gateway.describe(context, "ModelStatistics")
        readable = readable_statistics(self.gateway.catalogue, context, statistics)
        return _bytes(service_pb2.ModelStatisticsResponse(model_stats=readable))

    async def _describe(
        self, method: str, context: RequestContext, request: service_pb2.ModelMetadataRequest
    ) -> bytes:
        check_readable(self.gateway.catalogue, context, request.name, request.version)
        response = await self.gateway.describe(context, method, request.name, request.version)
        if method == "ModelConfig":
            hide_paths(response.config)
        return _bytes(response)


def permitted_model(
    gateway: Gateway,
    context: RequestContext,
    action: str,
    request: service_pb2.ModelMetadataRequest | service_pb2.ModelInferRequest,
) -> Model:
    """The model that a message names, if it is served and the caller may take this action on it;
    otherwise raises GatewayErrors."""
    is_infer = isinstance(request, service_pb2.ModelInferRequest)
    name = request.model_name if is_infer else request.name
    version = request.model_version if is_infer else request.version
    context.scope["path_params"] = {"model": name, "version": version}
    _require(context, action, name)
    if action == "infer":
        name = gateway.destination(context, name, version)
    return gateway.catalogue.model(name, version)


def parse_request(gateway: Gateway, context: RequestContext, data: bytes) -> RequestParts:
    """A ModelInferRequest with no more tensors than its model has; raises as ``RequestParts``."""

    def sizes_of(name: str) -> tuple[int, int]:
        _require(context, "infer", name)
        model = gateway.catalogue.model(gateway.destination(context, name))
        return len(model.inputs), len(model.outputs)

    return RequestParts(data, sizes_of)


def _require(context: RequestContext, action: str, name: str) -> None:
    """``context.require``, but a name too long for any model is not matched with the policy's
    globs."""
    if len(name) > MAX_NAME:
        context.require(action)
        raise no_model(name)
    context.require(action, name)


def _named(data: bytes) -> service_pb2.ModelMetadataRequest:
    """Parse any request that names a model and a version: all have the same fields."""
    try:
        return service_pb2.ModelMetadataRequest.FromString(data)
    except DecodeError:
        raise InvalidRequest(
            "the message cannot be parsed: use a client for KServe V2 or Triton"
        ) from None


def _bytes(message: Message) -> bytes:
    return message.SerializeToString()
