"""One Triton server.

gRPC, not HTTP: Triton's gRPC API notices when a client disconnects, its HTTP API does not, so a
cancelled request stops using the machine. ``http_upstream`` is for requests that are short by what
their model declares.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2, service_pb2_grpc

from gateway.errors import UpstreamError
from gateway.models.short import NOT_SHORT, Short
from gateway.upstream.balancing import Health
from gateway.upstream.grpc_streams import GrpcStreams
from gateway.upstream.stream_call import BOUND_S, EMPTY_FINAL, FINAL, StreamCall, StreamEnds
from gateway.upstream.trace_context import upstream_metadata
from gateway.upstream.triton_errors import to_gateway_error, translate, translated
from gateway.upstream.unary_call import UnaryCalls
from gateway.upstream.vanished import VANISHED_S
from modelspec.address import host_and_port
from modelspec.elements import encode

KEY_HEADER = "triton-grpc-protocol-tidegate-triton-key"
CONTROL_TIMEOUT_S = 5.0
# Read for every request: an attribute of an enum costs as much as the rest of the check.
_UP, _UNKNOWN, _DOWN = Health.UP, Health.UNKNOWN, Health.DOWN
_READY = grpc.ChannelConnectivity.READY
_FAILED = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # What Triton may send ahead on a stream that is not read: 64 KiB, whereas gRPC's own bandwidth
    # estimate soon raises it to 64 MB.
    ("grpc.http2.bdp_probe", 0),
    # A server that was restarted is found again within a second, not within two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # the least time for an attempt: machines are busy
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A connection whose other end has vanished is lost after VANISHED_S. Every Triton allows such
    # pings, beside the liveness checks: it counts only those between which it has sent nothing
    # itself. The last option is how long gRPC's core waits for the ping's answer, 60 s otherwise.
    ("grpc.keepalive_time_ms", VANISHED_S * 500),
    ("grpc.keepalive_timeout_ms", VANISHED_S * 500),
    ("grpc.http2.ping_timeout_ms", VANISHED_S * 500),
]

_MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"

if TYPE_CHECKING:
    from gateway.upstream.http_upstream import HttpUpstream


class Upstream:
    """Calls to one Triton; each raises a GatewayError, never a gRPC one."""

    def __init__(self, address: str, triton_key_file: Path) -> None:
        """``address`` is HOST:GRPC_PORT, or HOST:GRPC_PORT/HTTP_PORT for an HTTP upstream too."""
        self.address = address
        address, _, http_port = address.partition("/")
        self._key_file = triton_key_file
        self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.unary_calls = UnaryCalls[
            service_pb2.ModelInferRequest, service_pb2.ModelInferResponse
        ](self.stub.ModelInfer)
        self._raw_calls = UnaryCalls[bytes, bytes](self.channel.unary_unary(_MODEL_INFER))
        self.streams = GrpcStreams(*host_and_port(address))
        self.stream_ends = StreamEnds(self.streams)
        self.http_upstream = (
            _http_upstream(address, int(http_port), self.channel) if http_port else None
        )

    def health(self) -> Health:
        """The health that the connection shows; takes less than a microsecond."""
        state = self.channel.get_state()
        if state is _READY:
            return _UP
        return _DOWN if state in _FAILED else _UNKNOWN

    async def is_live(self, timeout_s: float) -> bool:
        """Whether the server is live and not shutting down. Raises a GatewayError if it does not
        respond.

        Live, not ready: Triton is not ready as long as one model cannot be loaded.
        """
        request = service_pb2.ServerLiveRequest()
        response = await translated(self.stub.ServerLive(request, timeout=timeout_s))
        return bool(response.live)

    async def infer(
        self,
        request: service_pb2.ModelInferRequest,
        timeout_s: float,
        short: Short = NOT_SHORT,
        tenant: str = "",
    ) -> service_pb2.ModelInferResponse:
        """One unary inference; cancelling the awaiting task ends it in Triton when that is safe
        (see ``unary_call``), unless it is ``short`` (what the model says of it): then it goes over
        HTTP if it can, perhaps with others. A large response is read in ``tenant``'s turns."""
        http = self.http_upstream
        if short.most_bytes and http is not None and http.takes(request, short.most_bytes):
            started = time.monotonic()
            response = await http.infer_message(request, timeout_s, tenant, short)
            if response is not None:
                return response
            timeout_s -= time.monotonic() - started
        return await self.unary_calls.infer(request, timeout_s)

    async def infer_raw(self, request: bytes, timeout_s: float) -> bytes:
        """The same with a serialized request and response, which are not parsed here."""
        return await self._raw_calls.infer(request, timeout_s)

    def open_stream(self, timeout_s: float | None = None) -> StreamCall:
        """Open a ModelStreamInfer. Whatever happens, await its ``end``, ``timeout_s`` from now at
        the latest. A gRPC deadline would be a cancel amid responses: it is set much later, for
        what has not ended by then."""
        bound_s = None if timeout_s is None else timeout_s + BOUND_S
        stream = self.streams.open(upstream_metadata.get(), bound_s)
        return StreamCall(self.stream_ends, stream)

    async def stream(
        self,
        request: service_pb2.ModelInferRequest,
        idle_s: float,
        total_s: float,
        cancel: str = "",
        first_s: float | None = None,
    ) -> AsyncGenerator[service_pb2.ModelInferResponse, None]:
        """The responses to one request that have outputs, over a stream of its own, which is read
        only as fast as the caller iterates; closing the generator (``aclosing``) ends it in Triton.

        ``idle_s`` bounds the wait for each response (``first_s`` that for the first one, if it is
        another), ``total_s`` the whole stream. ``cancel`` names the model's input for the id of a
        request to give up; without one, Triton is told.
        """
        request.parameters[EMPTY_FINAL].bool_param = True
        call, clock = self.open_stream(total_s), asyncio.get_running_loop().time
        until = clock() + total_s
        if cancel:
            request.id = uuid.uuid4().hex
            call.cancel_message = _cancel_message(request, cancel)
        try:
            wait_until = min(clock() + (idle_s if first_s is None else first_s), until)
            async with asyncio.timeout_at(wait_until):
                await call.write(request.SerializeToString())
                await call.done_writing()
            final = False
            while not final:
                message = _parsed(await call.read(wait_until))
                final = bool(message.infer_response.parameters[FINAL].bool_param)
                if final:
                    call.cancel_message = None
                if message.infer_response.outputs:
                    yield message.infer_response
                wait_until = min(clock() + idle_s, until)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            raise to_gateway_error(error) from error
        finally:
            await call.end()

    async def describe(self, method: str, model: str = "", version: str = "") -> Any:
        """Triton's response to a ModelReady, ModelMetadata, ModelConfig or ModelStatistics request.

        Without a model's name it covers all models, if the method supports that.
        """
        request = getattr(service_pb2, f"{method}Request")(name=model, version=version)
        return await self._control(getattr(self.stub, method), request)

    async def ready_versions(self) -> dict[str, tuple[str, ...]]:
        """Model -> its versions that are ready, from Triton's repository index."""
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
        # Read each time: `up` may have created a new key in the meantime.
        try:
            return self._key_file.read_text().strip()
        except OSError:
            return ""

    async def _control(self, method: Any, request: Message, **options: Any) -> Any:
        return await translated(method(request, timeout=CONTROL_TIMEOUT_S, **options))

    async def close(self) -> None:
        if self.http_upstream:
            self.http_upstream.close()
        await self.unary_calls.close()
        await self._raw_calls.close()
        await self.stream_ends.close()
        self.streams.close()
        await self.channel.close(None)


def _cancel_message(
    request: service_pb2.ModelInferRequest, tensor: str
) -> service_pb2.ModelInferRequest:
    """Asks the model to give up ``request``."""
    message = service_pb2.ModelInferRequest(
        model_name=request.model_name, model_version=request.model_version
    )
    message.inputs.add(name=tensor, datatype="BYTES", shape=[1])
    message.raw_input_contents.append(encode("BYTES", [request.id]))
    return message


def _parsed(data: bytes | None) -> service_pb2.ModelStreamInferResponse:
    """A stream's message. Raises UpstreamError for an error or an early end."""
    if data is None:
        raise UpstreamError("the model stopped in the middle of its response: try again")
    message = service_pb2.ModelStreamInferResponse.FromString(data)
    if message.error_message:
        raise translate(grpc.StatusCode.UNKNOWN, message.error_message)
    return message


def _http_upstream(address: str, port: int, channel: object) -> "HttpUpstream":
    from gateway.upstream.http_upstream import HttpUpstream

    return HttpUpstream(address, port, channel)
