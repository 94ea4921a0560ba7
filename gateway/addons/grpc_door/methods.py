"""The unary methods. Each reads its own message, and asks for the model that stands in it."""

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2

from gateway.addons.grpc_door.answer import ask_for_tokens, metered
from gateway.addons.grpc_door.request import check_request, timeout_s
from gateway.addons.grpc_door.wire import Parts
from gateway.core import Gateway
from gateway.doors.described import check_readable, hide_paths, shown_statistics
from gateway.doors.v2 import EXTENSIONS, NAME
from gateway.errors import Malformed, NoCapacity, NotFound
from gateway.http.endpoint import needs
from gateway.http.exchange import Exchange
from gateway.models.catalogue import Model
from gateway.probes import outage, readiness
from gateway.upstream import translated

INFER = "/inference.GRPCInferenceService/ModelInfer"
Handler = Callable[[Exchange, bytes], Awaitable[bytes]]


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
    async def infer(self, exchange: Exchange, data: bytes) -> bytes:
        parts = Parts(data)
        exchange.body_bytes = len(data)
        model = permitted(self.gateway, exchange, "infer", parts.header)
        if model.decoupled:
            raise Malformed(f"model {model.name!r} streams: call it with ModelStreamInfer")
        exchange.shorten_deadline(timeout_s(parts))
        check_request(parts, model)
        self.gateway.sequences.put_own(parts.header, exchange.tenant)
        parts.header.model_name = self.gateway.serving(exchange, model, parts.header)
        async with self.gateway.guard.admit(exchange, model) as admission:
            meter = self.gateway.guard.meter(admission, model)
            if meter:
                ask_for_tokens(parts, meter)
            with self.gateway.permit(exchange, model, parts.header) as upstream:
                work = upstream.channel.unary_unary(INFER)
                answer: bytes = await translated(
                    work(parts.message(), timeout=exchange.remaining_s())
                )
            return metered(answer, meter) if meter else answer

    @needs("read")
    async def server_live(self, exchange: Exchange, data: bytes) -> bytes:
        return _bytes(service_pb2.ServerLiveResponse(live=True))

    @needs("read")
    async def server_ready(self, exchange: Exchange, data: bytes) -> bytes:
        faults = readiness(self.gateway)
        ready = not outage(self.gateway) and not any(
            fault and exchange.may_read(name) for name, fault in faults.items()
        )
        return _bytes(service_pb2.ServerReadyResponse(ready=ready))

    @needs("read")
    async def server_metadata(self, exchange: Exchange, data: bytes) -> bytes:
        return _bytes(
            service_pb2.ServerMetadataResponse(name=NAME, version="2", extensions=EXTENSIONS)
        )

    @needs("read")
    async def model_ready(self, exchange: Exchange, data: bytes) -> bytes:
        """Ready means that Triton says so and that the last golden probe was answered.

        A model that is not there, or not the caller's, is not ready: Triton has no error for it.
        """
        request = _named(data)
        try:
            model = permitted(self.gateway, exchange, "read", request)
        except (NotFound, NoCapacity):
            return _bytes(service_pb2.ModelReadyResponse(ready=False))
        fault = self.gateway.probes.get(model.name)
        asked = ("ModelReady", model.name, request.version)
        ready = not fault and (await self.gateway.pool.describe(*asked)).ready
        return _bytes(service_pb2.ModelReadyResponse(ready=ready))

    @needs("read")
    async def model_metadata(self, exchange: Exchange, data: bytes) -> bytes:
        return await self._described("ModelMetadata", exchange, _named(data))

    @needs("read")
    async def model_config(self, exchange: Exchange, data: bytes) -> bytes:
        return await self._described("ModelConfig", exchange, _named(data))

    @needs("read")
    async def model_statistics(self, exchange: Exchange, data: bytes) -> bytes:
        """Of one model; without a name, of all that the caller may read."""
        request = _named(data)
        if request.name:
            return await self._described("ModelStatistics", exchange, request)
        found = await self.gateway.pool.describe("ModelStatistics")
        shown = shown_statistics(self.gateway.catalogue, exchange, found)
        return _bytes(service_pb2.ModelStatisticsResponse(model_stats=shown))

    async def _described(self, method: str, exchange: Exchange, request: Any) -> bytes:
        check_readable(self.gateway.catalogue, exchange, request.name, request.version)
        found = await self.gateway.pool.describe(method, request.name, request.version)
        if method == "ModelConfig":
            hide_paths(found.config)
        return _bytes(found)


def permitted(gateway: Gateway, exchange: Exchange, action: str, request: Any) -> Model:
    """The model that a message names, if it is served and the caller may do this with it."""
    is_infer = isinstance(request, service_pb2.ModelInferRequest)
    name = request.model_name if is_infer else request.name
    version = request.model_version if is_infer else request.version
    exchange.scope["path_params"] = {"model": name, "version": version}
    exchange.require(action, name)
    return gateway.catalogue.model(name, version)


def _named(data: bytes) -> service_pb2.ModelMetadataRequest:
    """All requests that name a model and a version have the same form."""
    try:
        return service_pb2.ModelMetadataRequest.FromString(data)
    except DecodeError:
        raise Malformed(
            "the message cannot be read: use a client for KServe V2 or Triton"
        ) from None


def _bytes(message: Message) -> bytes:
    return message.SerializeToString()
