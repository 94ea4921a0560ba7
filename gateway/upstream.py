"""One Triton server, and its errors in our words.

gRPC, not HTTP: Triton's HTTP door does not notice a client that left, its gRPC door does, so a
cancelled request stops using the machine. ``relay`` is for models that declare themselves short.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from gateway.addons.relay.triton_http import Answer, TritonHttp
from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    Malformed,
    NoCapacity,
    TooLarge,
    UpstreamBroke,
)

# A step's error that is meant for the client begins with this; every other text of Triton's may
# name paths or shared-memory regions and stays here.
FOR_CLIENT = "[tidegate:invalid_input] "
KEY_HEADER = "triton-grpc-protocol-tidegate-triton-key"
CONTROL_TIMEOUT_S = 5.0
SERVICE = "/inference.GRPCInferenceService"
# With it Triton says of each stream when it has ended, even if it ends without another output.
EMPTY_FINAL, FINAL = "triton_enable_empty_final_response", "triton_final_response"
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
        self.address = address
        self._http = TritonHttp(address.rpartition(":")[0], int(http_port)) if http_port else None
        self._watch: asyncio.Task[None] | None = None
        self._key_file = triton_key_file
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer_bytes = self._channel.unary_unary(f"{SERVICE}/ModelInfer")
        self._stream_bytes = self._channel.stream_stream(f"{SERVICE}/ModelStreamInfer")

    async def infer(
        self, request: service_pb2.ModelInferRequest, timeout_s: float
    ) -> service_pb2.ModelInferResponse:
        """One unary inference; cancelling the awaiting task cancels it in Triton."""
        return await _translated(self._stub.ModelInfer(request, timeout=timeout_s))

    async def stream(
        self, request: service_pb2.ModelInferRequest, timeout_s: float, idle_s: float
    ) -> AsyncGenerator[service_pb2.ModelInferResponse, None]:
        """The answers to one request as they come, on a gRPC stream of its own.

        Closing the generator, or cancelling its task, cancels the request in Triton. ``timeout_s``
        bounds the whole, ``idle_s`` each wait. It is read only as fast as it is asked.
        """
        request.parameters[EMPTY_FINAL].bool_param = True
        call = self._stub.ModelStreamInfer(timeout=timeout_s)
        try:
            await call.write(request)
            await call.done_writing()
            final = False
            while not final:
                async with asyncio.timeout(idle_s):
                    answer = await call.read()
                final = _is_final(answer)
                if answer.infer_response.outputs:
                    yield answer.infer_response
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            raise _told(error) from error
        finally:
            call.cancel()

    async def infer_bytes(self, request: bytes, timeout_s: float) -> bytes:
        """As ``infer``, with messages that are neither read nor written here."""
        answer: bytes = await _translated(self._infer_bytes(request, timeout=timeout_s))
        return answer

    def stream_bytes(self, **options: Any) -> Any:
        """A call of ModelStreamInfer, which raises gRPC's own errors: see ``translate``."""
        return self._stream_bytes(**options)

    async def describe(self, method: str, request: bytes) -> bytes:
        """A unary method that tells something of a model, bytes in and out."""
        call = self._channel.unary_unary(f"{SERVICE}/{method}")
        answer: bytes = await self._control(call, request)
        return answer

    async def relay(self, request: bytes, timeout_s: float) -> Answer | None:
        """Ask over HTTP/1.1; None when that cannot be done here or now, and gRPC should be asked.

        Cancelling the awaiting task closes the connection, but Triton works on.
        """
        if self._http is None:
            return None
        if self._watch is None:
            self._watch = asyncio.create_task(self._drop_with_channel(self._http))
        try:
            return await self._http.ask(request, timeout_s)
        except TimeoutError as error:
            raise translate(grpc.StatusCode.DEADLINE_EXCEEDED) from error
        except ConnectionError as error:
            raise translate(grpc.StatusCode.UNAVAILABLE) from error
        except ValueError as error:
            raise translate(grpc.StatusCode.UNKNOWN) from error

    async def _drop_with_channel(self, http: TritonHttp) -> None:
        """Close the HTTP connections when gRPC's is lost: the server has gone.

        They would not close by themselves: processes that Triton forked have inherited them.
        """
        state = self._channel.get_state(try_to_connect=True)
        while True:
            await self._channel.wait_for_state_change(state)
            was_ready = state is grpc.ChannelConnectivity.READY
            state = self._channel.get_state(try_to_connect=True)
            if was_ready and state is not grpc.ChannelConnectivity.READY:
                http.drop()

    async def metadata(self, model: str, version: str) -> service_pb2.ModelMetadataResponse:
        request = service_pb2.ModelMetadataRequest(name=model, version=version)
        return await self._control(self._stub.ModelMetadata, request)

    async def is_ready(self, model: str, version: str) -> bool:
        request = service_pb2.ModelReadyRequest(name=model, version=version)
        return bool((await self._control(self._stub.ModelReady, request)).ready)

    async def config(self, model: str, version: str = "") -> model_config_pb2.ModelConfig:
        request = service_pb2.ModelConfigRequest(name=model, version=version)
        return (await self._control(self._stub.ModelConfig, request)).config

    async def statistics(self, model: str, version: str) -> service_pb2.ModelStatisticsResponse:
        request = service_pb2.ModelStatisticsRequest(name=model, version=version)
        return await self._control(self._stub.ModelStatistics, request)

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
        if self._watch:
            self._watch.cancel()
        if self._http:
            self._http.drop()
        await self._channel.close(None)


def _is_final(answer: Any) -> bool:
    """Whether a stream's answer is its last; UpstreamBroke when it is none."""
    if answer is grpc.aio.EOF:
        raise UpstreamBroke("the model stopped in the middle of its answer: try again")
    if answer.error_message:
        raise translate(grpc.StatusCode.UNKNOWN, answer.error_message)
    return bool(answer.infer_response.parameters[FINAL].bool_param)


def _told(error: Exception) -> GatewayError:
    if isinstance(error, grpc.aio.AioRpcError):
        return translate(error.code(), error.details() or "")
    return translate(grpc.StatusCode.DEADLINE_EXCEEDED)


async def _translated(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise _told(error) from error


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
