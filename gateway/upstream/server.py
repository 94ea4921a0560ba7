"""One Triton server, and its errors translated into ours.

gRPC, not HTTP: Triton's gRPC API notices when a client disconnects, its HTTP API does not, so a
cancelled request stops using the machine. ``http_upstream`` is for models that declare themselves
short.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    NoCapacity,
    TooLarge,
    UpstreamError,
)
from gateway.models.sequences import not_begun
from gateway.upstream.balancing import Health
from gateway.upstream.stream_call import BOUND_S, EMPTY_FINAL, FINAL, StreamCall, StreamEnds

# A step's error that is meant for the client starts with this, and may name the faulty row of its
# batch; any other text of Triton's may name paths or shared-memory regions and is not passed on.
FOR_CLIENT = re.compile(r"\[tidegate:invalid_input(?: row=(\d{1,9}))?\] ")
# In the error for a request that continues a sequence unknown to Triton, whatever the status.
NOT_BEGUN = "must specify the START flag"
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
]

if TYPE_CHECKING:
    from gateway.upstream.http_upstream import HttpUpstream

log = logging.getLogger("gateway")
# The request that this task works on; '' in the background, where failures are not logged.
request_id: ContextVar[str] = ContextVar("request_id", default="")
WORDS = 2000  # characters of an error that are logged
# Statuses that a request alone can cause: they are logged at level INFO, not WARNING.
_CAUSED_BY_CLIENTS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)


class Upstream:
    """Calls to one Triton; each raises a GatewayError, never a gRPC one."""

    def __init__(self, address: str, triton_key_file: Path) -> None:
        """``address`` is HOST:GRPC_PORT, or HOST:GRPC_PORT/HTTP_PORT for an HTTP upstream too."""
        address, _, http_port = address.partition("/")
        self._key_file = triton_key_file
        self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.stream_ends = StreamEnds(self.stub)
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
        self, request: service_pb2.ModelInferRequest, timeout_s: float
    ) -> service_pb2.ModelInferResponse:
        """One unary inference; cancelling the awaiting task cancels it in Triton."""
        return await translated(self.stub.ModelInfer(request, timeout=timeout_s))

    def open_stream(self, timeout_s: float) -> StreamCall:
        """Open a ModelStreamInfer. Whatever happens, call ``end_stream`` on it, ``timeout_s`` from
        now at the latest. A gRPC deadline would be a cancel amid responses: it is set much later,
        for what has not ended by then."""
        timeout_s += BOUND_S
        return StreamCall(self.stream_ends, self.stub.ModelStreamInfer(timeout=timeout_s))

    async def stream(
        self, request: service_pb2.ModelInferRequest, idle_s: float, total_s: float
    ) -> AsyncGenerator[service_pb2.ModelInferResponse, None]:
        """The responses to one request that have outputs, over a stream of its own, which is read
        only as fast as the caller iterates; closing the generator (``aclosing``) ends it in Triton.

        ``idle_s`` bounds the wait for each response, ``total_s`` the whole stream.
        """
        request.parameters[EMPTY_FINAL].bool_param = True
        call, until = self.open_stream(total_s), time.monotonic() + total_s
        try:
            await call.write(request)
            await call.done_writing()
            final = False
            while not final:
                async with asyncio.timeout(min(idle_s, until - time.monotonic())):
                    message = await call.read()
                final = _is_final(message)
                if message.infer_response.outputs:
                    yield message.infer_response
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            raise to_gateway_error(error) from error
        finally:
            await end_stream(call)

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

    async def _control(self, method: Any, request: Any, **options: Any) -> Any:
        return await translated(method(request, timeout=CONTROL_TIMEOUT_S, **options))

    async def close(self) -> None:
        if self.http_upstream:
            self.http_upstream.close()
        await self.stream_ends.close()
        await self.channel.close(None)


async def end_stream(call: Any) -> None:
    """End a stream whose responses nobody wants any more; Triton stops working on it.

    A StreamCall is ended when that is safe (see ``stream_call``); a bare call is cancelled.
    """
    if isinstance(call, StreamCall):
        await call.end()
    else:
        call.cancel()


def _is_final(message: Any) -> bool:
    """Whether a stream's message is its last. Raises UpstreamError for an error or an early end."""
    if message is grpc.aio.EOF:
        raise UpstreamError("the model stopped in the middle of its response: try again")
    if message.error_message:
        raise translate(grpc.StatusCode.UNKNOWN, message.error_message)
    return bool(message.infer_response.parameters[FINAL].bool_param)


def _http_upstream(address: str, port: int, channel: Any) -> "HttpUpstream":
    from gateway.upstream.http_upstream import HttpUpstream

    return HttpUpstream(address, port, channel)


def to_gateway_error(error: Exception) -> GatewayError:
    if isinstance(error, grpc.aio.AioRpcError):
        return translate(error.code(), error.details() or "")
    return translate(grpc.StatusCode.DEADLINE_EXCEEDED, "no response before the deadline")


async def translated(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise to_gateway_error(error) from error


class UpstreamLog:
    """Logs Triton's own messages about failed requests, each with its request id.

    A client that provokes errors can neither forge lines nor fill the disk: unprintable characters
    are escaped, texts are truncated, and each level may log ``BURST`` lines at once and ``RATE``
    more per second. The next line of a level is preceded by the number of lines left out.
    """

    BURST, RATE = 200.0, 20.0

    def __init__(self) -> None:
        self._budget = {logging.INFO: self.BURST, logging.WARNING: self.BURST}
        self._updated = dict.fromkeys(self._budget, 0.0)  # monotonic seconds
        self._dropped = dict.fromkeys(self._budget, 0)

    def note(self, level: int, identifier: str, status: grpc.StatusCode, details: str) -> None:
        """``level`` is INFO or WARNING."""
        now = time.monotonic()
        gained = (now - self._updated[level]) * self.RATE
        self._budget[level] = min(self.BURST, self._budget[level] + gained)
        self._updated[level] = now
        if self._budget[level] < 1:
            self._dropped[level] += 1
            return
        self._budget[level] -= 1
        if self._dropped[level]:
            log.log(level, "upstream errors: %d more were not logged", self._dropped[level])
            self._dropped[level] = 0
        words = repr(details[:WORDS])[: WORDS + 48]
        log.log(level, "%s upstream %s: %s", identifier, status.name, words)


_upstream_log = UpstreamLog()


def log_upstream(status: grpc.StatusCode, details: str, whose: str = "") -> None:
    """Log Triton's message about this task's request. ``translate`` does so for its argument."""
    identifier = request_id.get()
    if identifier:
        caused = status in _CAUSED_BY_CLIENTS or FOR_CLIENT.search(details) is not None
        level = logging.INFO if caused else logging.WARNING
        _upstream_log.note(level, identifier, status, whose + details)


def translate(status: grpc.StatusCode, details: str = "", whose: str = "") -> GatewayError:
    """What a gRPC status of Triton's means to our client. Triton's own message only goes into the
    log, after ``whose``: the part of this task's request that it is about."""
    log_upstream(status, details, whose)
    match = FOR_CLIENT.search(details)
    if match:
        text = details[match.end() :].strip()
        return InvalidRequest(text, row=int(match[1]) if match[1] else None)
    if NOT_BEGUN in details:
        return not_begun()
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidRequest(
            "the model does not take this input: compare it with the model's metadata"
        )
    if status is grpc.StatusCode.NOT_FOUND:
        # The catalogue had it a moment ago: it is being reloaded, or was just removed.
        return NoCapacity("the model is not being served now: try again shortly", retry_after_s=1)
    if status is grpc.StatusCode.UNAVAILABLE:
        return NoCapacity("no server can take this now: try again shortly", retry_after_s=1)
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TooLarge("the tensors are larger than the server accepts: send fewer rows")
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("the model did not answer in time: send less, or try again later")
    return UpstreamError(
        "the model failed on this request: report the request id to your administrator"
    )
