"""The unary methods. Each reads its own message, and asks for the model that stands in it."""

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2

from gateway.api.grpc.request import check_request, timeout_s
from gateway.api.grpc.response import ask_for_tokens, metered
from gateway.api.grpc.wire import Parts
from gateway.api.v2.describe_model import check_readable, hide_paths, shown_statistics
from gateway.api.v2.routes import EXTENSIONS, NAME
from gateway.core import Gateway
from gateway.errors import InvalidRequest, NoCapacity, NotFound, no_model
from gateway.http.handler import needs
from gateway.http.request_context import RequestContext
from gateway.models.catalogue import Model
from gateway.policy.access import MAX_NAME
from gateway.upstream.probes import readable_readiness
from gateway.upstream.server import translated

INFER = "/inference.GRPCInferenceService/ModelInfer"
Handler = Callable[[RequestContext, bytes], Awaitable[bytes]]


class Methods:
    """``table`` holds what is offered: a method that is not in it is refused."""

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
        parts = parts_of(self.gateway, context, data)
        context.body_bytes = len(data)
        model = permitted(self.gateway, context, "infer", parts.header)
        if model.decoupled:
            raise InvalidRequest(f"model {model.name!r} streams: call it with ModelStreamInfer")
        context.shorten_deadline(timeout_s(parts))
        check_request(parts, model)
        self.gateway.sequences.put_own(parts.header, context.tenant)
        parts.header.model_name = self.gateway.serving(context, model, parts.header)
        admission = await context.enter(self.gateway.access_control.admit(context, model))
        meter = self.gateway.access_control.meter(admission, model)
        if meter:
            ask_for_tokens(parts, meter)
        with self.gateway.permit(context, model, parts.header) as upstream:
            work = upstream.channel.unary_unary(INFER)
            left_s = context.remaining_s()
            admission.started()
            answer: bytes = await translated(work(parts.message(), timeout=left_s))
        return metered(answer, meter) if meter else answer

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
        """Ready means that Triton says so and that the last golden probe was answered.

        A model that is not there, or not the caller's, is not ready: Triton has no error for it.
        """
        request = _named(data)
        try:
            model = permitted(self.gateway, context, "read", request)
        except (NotFound, NoCapacity):
            return _bytes(service_pb2.ModelReadyResponse(ready=False))
        fault = self.gateway.probes.get(model.name)
        asked = ("ModelReady", model.name, request.version)
        ready = not fault and (await self.gateway.pool.describe(*asked)).ready
        return _bytes(service_pb2.ModelReadyResponse(ready=ready))

    @needs("read")
    async def model_metadata(self, context: RequestContext, data: bytes) -> bytes:
        return await self._described("ModelMetadata", context, _named(data))

    @needs("read")
    async def model_config(self, context: RequestContext, data: bytes) -> bytes:
        return await self._described("ModelConfig", context, _named(data))

    @needs("read")
    async def model_statistics(self, context: RequestContext, data: bytes) -> bytes:
        """Of one model; without a name, of all that the caller may read."""
        request = _named(data)
        if request.name:
            return await self._described("ModelStatistics", context, request)
        found = await self.gateway.pool.describe("ModelStatistics")
        shown = shown_statistics(self.gateway.catalogue, context, found)
        return _bytes(service_pb2.ModelStatisticsResponse(model_stats=shown))

    async def _described(self, method: str, context: RequestContext, request: Any) -> bytes:
        check_readable(self.gateway.catalogue, context, request.name, request.version)
        found = await self.gateway.pool.describe(method, request.name, request.version)
        if method == "ModelConfig":
            hide_paths(found.config)
        return _bytes(found)


def permitted(gateway: Gateway, context: RequestContext, action: str, request: Any) -> Model:
    """The model that a message names, if it is served and the caller may do this with it."""
    is_infer = isinstance(request, service_pb2.ModelInferRequest)
    name = request.model_name if is_infer else request.name
    version = request.model_version if is_infer else request.version
    context.scope["path_params"] = {"model": name, "version": version}
    _require(context, action, name)
    return gateway.catalogue.model(name, version)


def parts_of(gateway: Gateway, context: RequestContext, data: bytes) -> Parts:
    """A ModelInferRequest, with no more tensors than its model has; GatewayErrors as ``Parts``."""

    def sizes_of(name: str) -> tuple[int, int]:
        _require(context, "infer", name)
        model = gateway.catalogue.model(name)
        return len(model.inputs), len(model.outputs)

    return Parts(data, sizes_of)


def _require(context: RequestContext, action: str, name: str) -> None:
    """Names are matched with the policy's globs: one that is too long for any model is not."""
    if len(name) > MAX_NAME:
        context.require(action)
        raise no_model(name)
    context.require(action, name)


def _named(data: bytes) -> service_pb2.ModelMetadataRequest:
    """All requests that name a model and a version have the same form."""
    try:
        return service_pb2.ModelMetadataRequest.FromString(data)
    except DecodeError:
        raise InvalidRequest(
            "the message cannot be read: use a client for KServe V2 or Triton"
        ) from None


def _bytes(message: Message) -> bytes:
    return message.SerializeToString()
