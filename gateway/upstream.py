"""One Triton server, and its errors in our words.

gRPC, not HTTP: Triton's HTTP door does not notice a client that left, its gRPC door does, so a
cancelled request stops using the machine. ``relay`` is for models that declare themselves short.
"""

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from gateway.addons import load
from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    Malformed,
    NoCapacity,
    TooLarge,
    UpstreamBroke,
)
from gateway.stream_call import StreamCall, StreamEnds

# A step's error that is meant for the client begins with this; every other text of Triton's may
# name paths or shared-memory regions and stays here.
FOR_CLIENT = "[tidegate:invalid_input] "
KEY_HEADER = "triton-grpc-protocol-tidegate-triton-key"
CONTROL_TIMEOUT_S = 5.0
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A server that was restarted is found again within a second, not within two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class Upstream:
    """Calls to one Triton; each raises a GatewayError, never a gRPC one."""

    def __init__(self, address: str, triton_key_file: Path) -> None:
        """``address`` is HOST:GRPC_PORT, or HOST:GRPC_PORT/HTTP_PORT to have a relay."""
        address, _, http_port = address.partition("/")
        self._key_file = triton_key_file
        self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.stream_ends = StreamEnds(self.stub)
        self.relay = load("relay")(address, int(http_port), self.channel) if http_port else None

    async def infer(
        self, request: service_pb2.ModelInferRequest, timeout_s: float
    ) -> service_pb2.ModelInferResponse:
        """One unary inference; cancelling the awaiting task cancels it in Triton."""
        return await translated(self.stub.ModelInfer(request, timeout=timeout_s))

    def open_stream(self, timeout_s: float) -> StreamCall:
        """A ModelStreamInfer of messages; ``end_stream`` it, whatever happens."""
        return StreamCall(self.stream_ends, self.stub.ModelStreamInfer(timeout=timeout_s))

    async def describe(self, method: str, model: str = "", version: str = "") -> Any:
        """What Triton tells of a model: ModelReady, ModelMetadata, ModelConfig or ModelStatistics.

        Without a name, of all of them, where the method can.
        """
        request = getattr(service_pb2, f"{method}Request")(name=model, version=version)
        return await self._control(getattr(self.stub, method), request)

    async def ready_versions(self) -> dict[str, tuple[str, ...]]:
        """Model -> its versions that Triton says are ready, from the repository index."""
        index = await self._control(
            self.stub.RepositoryIndex,
            service_pb2.RepositoryIndexRequest(ready=True),
            metadata=((KEY_HEADER, self._key()),),
        )
        versions: dict[str, tuple[str, ...]] = {}
        for model in index.models:
            versions[model.name] = (*versions.get(model.name, ()), model.version)
        return versions

    def _key(self) -> str:
        # Read each time: `up` may have made a new one since.
        try:
            return self._key_file.read_text().strip()
        except OSError:
            return ""

    async def _control(self, method: Any, request: Any, **options: Any) -> Any:
        return await translated(method(request, timeout=CONTROL_TIMEOUT_S, **options))

    async def close(self) -> None:
        if self.relay:
            self.relay.close()
        await self.channel.close(None)


async def end_stream(call: Any) -> None:
    """End a stream whose answers nobody wants any more; Triton stops working on it.

    Awaits what is safe (see ``stream_call``) for a StreamCall; a bare call is cancelled.
    """
    if isinstance(call, StreamCall):
        await call.end()
    else:
        call.cancel()


def told(error: Exception) -> GatewayError:
    if isinstance(error, grpc.aio.AioRpcError):
        return translate(error.code(), error.details() or "")
    return translate(grpc.StatusCode.DEADLINE_EXCEEDED)


async def translated(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise told(error) from error


def translate(status: grpc.StatusCode, details: str = "") -> GatewayError:
    """What a gRPC status of Triton's means to our client."""
    _, marked, text = details.partition(FOR_CLIENT)
    if marked:
        return Malformed(text.strip())
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return Malformed("the model does not take this input: compare it with the model's metadata")
    if status is grpc.StatusCode.NOT_FOUND:
        # The catalogue had it a moment ago: it is being loaded again, or has just left.
        return NoCapacity("the model is not being served now: try again shortly", retry_after_s=1)
    if status is grpc.StatusCode.UNAVAILABLE:
        return NoCapacity("no server can take this now: try again shortly", retry_after_s=1)
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TooLarge("the tensors are over what the server takes: send fewer rows")
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("the model did not answer in time: try again or send less")
    return UpstreamBroke("the model failed on this request: try again; report it if it lasts")
