"""One Triton server, and its errors in our words.

gRPC wherever work can be long or carries parameters: a cancelled request stops using the machine.
Triton's HTTP door does not notice a client that left, so only inferences that end sooner than we
would notice it ourselves go there, to a replica whose HTTP port is known.
"""

import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    Malformed,
    NoCapacity,
    TooLarge,
    UpstreamBroke,
)
from gateway.triton_http import TritonHttp
from gateway.triton_wire import TritonRefused, is_plain

# A step's error that is meant for the client begins with this; every other text of Triton's may
# name paths or shared-memory regions and stays here.
FOR_CLIENT = "[tidegate:invalid_input] "
KEY_HEADER = "triton-grpc-protocol-tidegate-triton-key"
CONTROL_TIMEOUT_S = 5.0
# As long as it takes until a client that left is looked for (gateway.exchange).
SHORT_S = 0.02
# The newest answer's weight in what a model usually takes.
_NEWEST = 0.1
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
        """``address`` is HOST:GRPC_PORT, or HOST:GRPC_PORT/HTTP_PORT."""
        address, _, http_port = address.partition("/")
        self.address = address
        self._http = TritonHttp(address.rpartition(":")[0], int(http_port)) if http_port else None
        self._usual_s: dict[str, float] = {}  # model -> what it usually takes
        self._key_file = triton_key_file
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def infer(
        self, request: service_pb2.ModelInferRequest, timeout_s: float
    ) -> service_pb2.ModelInferResponse:
        """One unary inference; cancelling the awaiting task cancels it in Triton, if it is long."""
        started = time.perf_counter()
        model = request.model_name
        usual_s = self._usual_s.get(model, SHORT_S)  # not short, until it has shown to be
        http = self._http if usual_s < SHORT_S and is_plain(request) else None
        if http is None:
            response = await _translated(self._stub.ModelInfer(request, timeout=timeout_s))
        else:
            response = await self._over_http(http, request, timeout_s)
        took_s = time.perf_counter() - started
        self._usual_s[model] = usual_s + (took_s - usual_s) * _NEWEST
        return response

    async def _over_http(
        self, http: TritonHttp, request: service_pb2.ModelInferRequest, timeout_s: float
    ) -> service_pb2.ModelInferResponse:
        try:
            return await http.infer(request, timeout_s)
        except TritonRefused as error:
            status = _STATUS.get(error.status, grpc.StatusCode.UNKNOWN)
            raise translate(status, error.details) from error
        except OSError:  # nobody there, or it is starting again: gRPC knows how to wait for that
            return await _translated(self._stub.ModelInfer(request, timeout=timeout_s))

    async def metadata(self, model: str, version: str) -> service_pb2.ModelMetadataResponse:
        request = service_pb2.ModelMetadataRequest(name=model, version=version)
        return await self._control(self._stub.ModelMetadata, request)

    async def is_ready(self, model: str, version: str) -> bool:
        request = service_pb2.ModelReadyRequest(name=model, version=version)
        return bool((await self._control(self._stub.ModelReady, request)).ready)

    async def config(self, model: str) -> model_config_pb2.ModelConfig:
        request = service_pb2.ModelConfigRequest(name=model)
        return (await self._control(self._stub.ModelConfig, request)).config

    async def ready_versions(self) -> dict[str, tuple[str, ...]]:
        """Model -> its versions that Triton says are ready, from the repository index."""
        index = await self._control(
            self._stub.RepositoryIndex,
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
        return await _translated(method(request, timeout=CONTROL_TIMEOUT_S, **options))

    async def close(self) -> None:
        if self._http:
            self._http.close()
        await self._channel.close(None)


async def _translated(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise translate(error.code(), error.details() or "") from error


# How Triton's HTTP door says what its gRPC door says with a status.
_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def translate(status: grpc.StatusCode, details: str) -> GatewayError:
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
