"""One Triton server, and its errors in our words.

gRPC, not HTTP: Triton's HTTP API does not notice a client that left, its gRPC API does, so a
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

# A step's error that is meant for the client begins with this, and may say which row of its batch
# is to blame; every other text of Triton's may name paths or shared-memory regions and stays here.
FOR_CLIENT = re.compile(r"\[tidegate:invalid_input(?: row=(\d{1,9}))?\] ")
# Of a request that goes on with a sequence that Triton does not know, whatever the status.
NOT_BEGUN = "must specify the START flag"
KEY_HEADER = "triton-grpc-protocol-tidegate-triton-key"
CONTROL_TIMEOUT_S = 5.0
# Looked at for every request: an attribute of an enumeration costs as much as the rest of it.
_UP, _UNKNOWN, _DOWN = Health.UP, Health.UNKNOWN, Health.DOWN
_READY = grpc.ChannelConnectivity.READY
_FAILED = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # What Triton may send ahead on a stream that is not read: 64 KiB, where gRPC's own measure of
    # the line soon makes it 64 MB.
    ("grpc.http2.bdp_probe", 0),
    # A server that was restarted is found again within a second, not within two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # what an attempt has, at least: machines are busy
    ("grpc.max_reconnect_backoff_ms", 1000),
]

if TYPE_CHECKING:
    from gateway.upstream.http_upstream import HttpUpstream

log = logging.getLogger("gateway")
# Whose request this task works on; '' in the background, where nothing is logged of each failure.
request_id: ContextVar[str] = ContextVar("request_id", default="")
WORDS = 2000  # characters of an error that are logged
# Statuses that a request can cause by itself: they are logged as information, not as warnings.
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
        """``address`` is HOST:GRPC_PORT, or HOST:GRPC_PORT/HTTP_PORT to have an HTTP upstream."""
        address, _, http_port = address.partition("/")
        self._key_file = triton_key_file
        self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.stream_ends = StreamEnds(self.stub)
        self.http_upstream = (
            _http_upstream(address, int(http_port), self.channel) if http_port else None
        )

    def health(self) -> Health:
        """As far as the connection shows it; asking costs less than a microsecond."""
        state = self.channel.get_state()
        if state is _READY:
            return _UP
        return _DOWN if state in _FAILED else _UNKNOWN

    async def is_live(self, timeout_s: float) -> bool:
        """Whether the server answers, and does not say that it is ending; GatewayErrors else.

        Live, not ready: Triton says that it is not ready while one model cannot be loaded.
        """
        request = service_pb2.ServerLiveRequest()
        answer = await translated(self.stub.ServerLive(request, timeout=timeout_s))
        return bool(answer.live)

    async def infer(
        self, request: service_pb2.ModelInferRequest, timeout_s: float
    ) -> service_pb2.ModelInferResponse:
        """One unary inference; cancelling the awaiting task cancels it in Triton."""
        return await translated(self.stub.ModelInfer(request, timeout=timeout_s))

    def open_stream(self, timeout_s: float) -> StreamCall:
        """A ModelStreamInfer of messages; ``end_stream`` it, whatever happens, ``timeout_s`` from
        now at the latest. A deadline of gRPC's would be a cancel in the midst of answers: it comes
        much later, for what did not end by then."""
        timeout_s += BOUND_S
        return StreamCall(self.stream_ends, self.stub.ModelStreamInfer(timeout=timeout_s))

    async def stream(
        self, request: service_pb2.ModelInferRequest, idle_s: float, total_s: float
    ) -> AsyncGenerator[service_pb2.ModelInferResponse, None]:
        """The answers to one request that have outputs, over a stream of its own, which is read
        only as fast as it is asked; leaving the generator (``aclosing``) ends it in Triton.

        ``idle_s`` bounds the wait for each answer, ``total_s`` the whole.
        """
        request.parameters[EMPTY_FINAL].bool_param = True
        call, until = self.open_stream(total_s), time.monotonic() + total_s
        try:
            await call.write(request)
            await call.done_writing()
            final = False
            while not final:
                async with asyncio.timeout(min(idle_s, until - time.monotonic())):
                    answer = await call.read()
                final = _is_final(answer)
                if answer.infer_response.outputs:
                    yield answer.infer_response
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            raise to_gateway_error(error) from error
        finally:
            await end_stream(call)

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
        if self.http_upstream:
            self.http_upstream.close()
        await self.stream_ends.close()
        await self.channel.close(None)


async def end_stream(call: Any) -> None:
    """End a stream whose answers nobody wants any more; Triton stops working on it.

    Awaits what is safe (see ``stream_call``) for a StreamCall; a bare call is cancelled.
    """
    if isinstance(call, StreamCall):
        await call.end()
    else:
        call.cancel()


def _is_final(answer: Any) -> bool:
    """Whether a stream's answer is its last; UpstreamError when it is none."""
    if answer is grpc.aio.EOF:
        raise UpstreamError("the model stopped in the middle of its answer: try again")
    if answer.error_message:
        raise translate(grpc.StatusCode.UNKNOWN, answer.error_message)
    return bool(answer.infer_response.parameters[FINAL].bool_param)


def _http_upstream(address: str, port: int, channel: Any) -> "HttpUpstream":
    from gateway.upstream.http_upstream import HttpUpstream

    return HttpUpstream(address, port, channel)


def to_gateway_error(error: Exception) -> GatewayError:
    if isinstance(error, grpc.aio.AioRpcError):
        return translate(error.code(), error.details() or "")
    return translate(grpc.StatusCode.DEADLINE_EXCEEDED, "nothing came in the time that there was")


async def translated(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise to_gateway_error(error) from error


class UpstreamLog:
    """Triton's own words about requests that failed, each with the id of its request.

    A client that provokes errors can neither forge lines nor fill the disk: what is not printable
    is escaped, a text is cut, and each level has ``BURST`` lines at once and ``RATE`` more a
    second. How many were left out is said with the next line of that level.
    """

    BURST, RATE = 200.0, 20.0

    def __init__(self) -> None:
        self._left = {logging.INFO: self.BURST, logging.WARNING: self.BURST}
        self._since = dict.fromkeys(self._left, 0.0)  # monotonic seconds
        self._unsaid = dict.fromkeys(self._left, 0)

    def note(self, level: int, identifier: str, status: grpc.StatusCode, details: str) -> None:
        """``level`` is INFO or WARNING."""
        now = time.monotonic()
        gained = (now - self._since[level]) * self.RATE
        self._left[level] = min(self.BURST, self._left[level] + gained)
        self._since[level] = now
        if self._left[level] < 1:
            self._unsaid[level] += 1
            return
        self._left[level] -= 1
        if self._unsaid[level]:
            log.log(level, "upstream errors: %d more were not logged", self._unsaid[level])
            self._unsaid[level] = 0
        words = repr(details[:WORDS])[: WORDS + 48]
        log.log(level, "%s upstream %s: %s", identifier, status.name, words)


_upstream_log = UpstreamLog()


def log_upstream(status: grpc.StatusCode, details: str, whose: str = "") -> None:
    """Log what Triton said of this task's request; ``translate`` does it for what it translates."""
    identifier = request_id.get()
    if identifier:
        caused = status in _CAUSED_BY_CLIENTS or FOR_CLIENT.search(details) is not None
        level = logging.INFO if caused else logging.WARNING
        _upstream_log.note(level, identifier, status, whose + details)


def translate(status: grpc.StatusCode, details: str = "", whose: str = "") -> GatewayError:
    """What a gRPC status of Triton's means to our client; Triton's words go into the log only,
    behind ``whose``: which part of this task's request they are about."""
    log_upstream(status, details, whose)
    marked = FOR_CLIENT.search(details)
    if marked:
        text = details[marked.end() :].strip()
        return InvalidRequest(text, row=int(marked[1]) if marked[1] else None)
    if NOT_BEGUN in details:
        return not_begun()
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidRequest(
            "the model does not take this input: compare it with the model's metadata"
        )
    if status is grpc.StatusCode.NOT_FOUND:
        # The catalogue had it a moment ago: it is being loaded again, or has just left.
        return NoCapacity("the model is not being served now: try again shortly", retry_after_s=1)
    if status is grpc.StatusCode.UNAVAILABLE:
        return NoCapacity("no server can take this now: try again shortly", retry_after_s=1)
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TooLarge("the tensors are over what the server takes: send fewer rows")
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("the model did not answer in time: send less, or try again later")
    return UpstreamError("the model failed on this request: report the request id to who runs it")
