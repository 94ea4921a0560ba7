"""One HTTP request in progress: its identity, its deadline, its body."""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from starlette.types import Receive, Scope

from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    RequestTimeout,
    TooLarge,
    Unauthenticated,
)
from gateway.http.memory_budget import MemoryBudget
from gateway.http.round_robin import BULK_BYTES, ROUND_ROBIN
from gateway.identity.credentials import bearer
from gateway.identity.keys import Holding
from gateway.policy.access import Access
from gateway.policy.principal import Principal

if TYPE_CHECKING:
    from gateway.limits.limiter import Admission

T = TypeVar("T")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}\Z")
# Noticing a disconnect takes a call to ``receive``; most responses are ready before that pays off.
DISCONNECT_WATCH_S = 0.02
LOGGED_CHARACTERS = 128  # of a text that a client chose, in logs and spans
TINY_BYTES = 1024  # smaller parts of a body are joined to the one before
TIMER_S = 0.001  # the loop's timers may fire this much early

# Headers that decide something: sent twice, they are refused.
_SINGLE = frozenset(
    {
        b"api-key",
        b"authorization",
        b"content-encoding",
        b"content-type",
        b"host",
        b"inference-header-content-length",
        b"transfer-encoding",
        b"x-request-id",
    }
)


class KnownHead(Protocol):
    """The head of a request, which a client is likely to send again on the same connection."""

    holding: Holding | None  # what its credential was verified as


class Connection(Protocol):
    """What the protocol knows about a request that it serves, in the scope as ``connection``."""

    known_head: KnownHead | None

    when_gone: Callable[[], object] | None  # called if the client leaves before the response ended
    fields: dict[bytes, bytes]  # the headers by name; of a repeated one the last

    def arrived(self) -> bytes | None:
        """The body, if all of it is here and none has been received; None otherwise."""

    def respond(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
        """Send a whole response at once; False, and nothing is sent, if the client has to be waited
        for or has left: ``send`` does either. Raises RuntimeError for a line end in a header."""


class Tokens(Protocol):
    """The tokens of a request, as the model counts them; None for what it does not count."""

    @property
    def input_tokens(self) -> int | None: ...

    @property
    def output_tokens(self) -> int | None: ...


class Spans(Protocol):
    """A request's spans (``gateway.tracing``)."""

    def sent(self, replica: str) -> None: ...

    def end(self, context: "RequestContext", status: int) -> None: ...


class ShadowedRequest:
    """A request to ``pipeline`` that was drawn for its shadow ``to`` (``gateway.shadowing``): what
    was sent and answered is kept until the caller has the response, and in how many seconds the
    replica answered it. Of a request with many rows that is the batch that was answered first."""

    __slots__ = ("pipeline", "request", "response", "to", "upstream_s")

    def __init__(self, pipeline: str, to: str) -> None:
        self.pipeline, self.to = pipeline, to
        self.request: Any = None
        self.response: Any = None
        self.upstream_s = 0.0

    def answered(self, request: Any, response: Any, upstream_s: float) -> None:
        if self.request is None:
            self.request, self.response, self.upstream_s = request, response, upstream_s


class ClientGone(Exception):
    """The client closed the connection: there is nobody to respond to."""


class RequestContext:
    """What the APIs need to know about a request; created by ``gateway.middleware``.

    Most of it is never set for most requests: it is read from the class.
    """

    principal: Principal | None = None
    action = ""  # what the caller wants to do; '' until it is known, as for the model
    model = ""
    fault: GatewayError | None = None  # the error that cut off a response that had started
    admission: "Admission | None" = None  # the latest one
    limit_headers: Sequence[tuple[bytes, bytes]] = ()
    body_bytes = 0
    # What metrics, the request log and traces say about it, each once it is known.
    api = ""  # as ``render.api_name`` says; 'grpc' for the gRPC API
    route = ""  # the template of the path, or the gRPC method
    pipeline = ""  # what serves the model: itself or a canary
    fallback = ""  # the pipeline that answers instead of the one that was asked for
    fallback_of = ""  # which is that one
    trial = ""  # the pipeline whose circuit breaker is on trial with this request
    # Those that it could have been sent to, with their percentages; and the version beside them.
    canaries: Mapping[str, float] = MappingProxyType({})
    beside = ""
    version = ""  # as the server says
    replica = ""  # the address of the latest that it was sent to
    sent_at = 0.0  # when it was first sent to a replica, as ``started``
    first_response_at = 0.0  # when a streaming model's first response came
    upstream_s = 0.0
    cache = ""  # what the response cache had to do with it: hit, redis, shared, miss
    shadow: ShadowedRequest | None = None  # it was drawn for a shadow
    is_shadow_drawn = False  # whether lots were drawn
    tokens: Tokens | None = None
    trace_id = ""  # of the caller's trace, or of ours
    spans: Spans | None = None  # None: it is not traced
    # A gRPC stream: each of its messages is a request of its own, and counted as one.
    is_stream = False
    body_timeout_s = 30.0  # the longest wait for the next bytes of the body
    memory_budget: MemoryBudget | None = None  # counts the bytes that this request holds
    buffered_bytes = 0
    entered: list[AbstractAsyncContextManager[object]] | None = None
    _canary_key = ""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        access: Access,
        body_limit_bytes: int,
        deadline_s: float,
    ) -> None:
        """``access``: the rules in force when the request arrived, which apply to its end."""
        self.started = started = time.perf_counter()
        self.scope, self.receive, self.access = scope, receive, access
        self.body_limit_bytes, self.deadline = body_limit_bytes, started + deadline_s
        self.path: str = scope["path"]
        # None if another server serves it.
        self.connection: Connection | None = scope.get("connection")
        connection = self.connection
        self.headers: dict[bytes, bytes] = (
            connection.fields if connection else dict(scope["headers"])
        )
        client_id = self.headers.get(b"x-request-id")
        if client_id is not None and _REQUEST_ID.match(client_id):
            self.request_id = client_id.decode()
        else:
            self.request_id = new_request_id()

    @property
    def canary_key(self) -> str:
        """Drawn for each request: it decides canaries, and a client may choose its request id."""
        if not self._canary_key:
            self._canary_key = new_request_id()
        return self._canary_key

    def require(self, action: str, model: str = "") -> None:
        """Raises Unauthenticated without an identity, and NotFound or Forbidden if the caller may
        not do this with this model."""
        self.action, self.model = action, model
        if self.principal is None:
            raise Unauthenticated(f"an identity is needed to {action}")
        self.access.check(self.principal, action, model)

    @property
    def tenant(self) -> str:
        return self.principal.tenant if self.principal else ""

    @property
    def caller(self) -> str:
        """The principal's id, '' without one."""
        return self.principal.id if self.principal else ""

    def may_read(self, model: str) -> bool:
        """Whether the caller may know that the model exists; always true without a caller."""
        return self.principal is None or self.access.allowed(self.principal, "read", model)

    def param(self, name: str) -> str:
        """A path parameter, or '' if the route has none with this name."""
        return str(self.scope["path_params"].get(name, ""))

    def remaining_s(self) -> float:
        """Seconds until the deadline. Raises DeadlineExceeded if it has passed."""
        remaining = self.deadline - time.perf_counter()
        if remaining <= 0:
            raise DeadlineExceeded("the deadline passed before the model was called: try again")
        return remaining

    def sent_to(self, replica: str) -> None:
        """Call it just before the work is sent to that replica."""
        self.replica = replica
        if not self.sent_at:
            self.sent_at = time.perf_counter()
        if self.spans:
            self.spans.sent(replica)

    def since_sent_s(self, start: float) -> float:
        """How many of the seconds since ``start`` (as ``started``) passed after the work was first
        sent to a replica. What passed before is the queue's, and is not counted twice."""
        return time.perf_counter() - max(start, self.sent_at) if self.sent_at else 0.0

    @property
    def queue_s(self) -> float | None:
        """How long it took until the work was sent: its arrival, identity, checks, admission, turn.
        None if it was not sent."""
        return self.sent_at - self.started if self.sent_at else None

    @property
    def first_response_s(self) -> float | None:
        """How long a streaming model's first response took."""
        return self.first_response_at - self.started if self.first_response_at else None

    def server_timing(self) -> str:
        """``Server-Timing`` as of now, in milliseconds: the whole, and what of it passed before the
        work was sent, upstream and here; and what the response cache did. Those of a gRPC stream's
        messages overlap: it has the whole only."""
        total_s, upstream_s = time.perf_counter() - self.started, self.upstream_s
        total = f"total;dur={total_s * 1e3:.2f}"
        if self.is_stream:
            return total
        queue = f"queue;dur={(self.sent_at - self.started) * 1e3:.2f}, " if self.sent_at else ""
        gateway = f"gateway;dur={(total_s - upstream_s) * 1e3:.2f}"
        cache = f"cache;desc={self.cache}, " if self.cache else ""
        return f"{cache}{gateway}, {queue}upstream;dur={upstream_s * 1e3:.2f}, {total}"

    def shorten_deadline(self, seconds: float | None) -> None:
        if seconds:
            self.deadline = min(self.deadline, self.started + seconds)

    async def enter(self, manager: AbstractAsyncContextManager[T]) -> T:
        """Enter the manager until the response has been handed to the connection or has failed, in
        which case its ``__aexit__`` receives the error. A response that its client does not read
        therefore keeps what it has taken.
        """
        value = await manager.__aenter__()
        if self.entered is None:
            self.entered = []
        self.entered.append(manager)
        return value

    async def leave(self, error: BaseException | None) -> None:
        """Exit the entered managers, the last first; called once, by the endpoint."""
        while self.entered:
            manager = self.entered.pop()
            try:
                await manager.__aexit__(type(error) if error else None, error, None)
            except BaseException:
                await self.leave(error)
                raise

    def count_buffered(self, size: int) -> None:
        """Count bytes that are held in memory for the caller until the request has ended.

        Raises QuotaExceeded if the caller holds too many already, NoCapacity if all callers
        together do.
        """
        if self.memory_budget and self.principal:
            self.memory_budget.take(self.principal, size, self.buffered_bytes)
            self.buffered_bytes += size

    def release_buffered(self) -> None:
        """Stop counting what was held; called once, by the middleware."""
        if self.memory_budget and self.principal and self.buffered_bytes:
            self.memory_budget.give_back(self.principal, self.buffered_bytes)
            self.buffered_bytes = 0

    def authorization(self) -> bytes | None:
        """The Authorization header; an ``api-key`` (as Azure's clients send) is a bearer token.

        Raises InvalidRequest if both are sent and differ.
        """
        authorization, key = self.headers.get(b"authorization"), self.headers.get(b"api-key")
        if key is None:
            return authorization
        if authorization is not None and bearer(authorization) != key.decode("latin-1").strip(" "):
            raise InvalidRequest(
                "'authorization' and 'api-key' differ: send one of the two headers"
            )
        return b"Bearer " + key

    def refuse_twice(self) -> None:
        """Raises InvalidRequest if a header that decides something is sent twice: a proxy in front
        of the gateway may have used the other one."""
        if len(self.headers) == len(self.scope["headers"]):
            return
        counts = Counter(name for name, _ in self.scope["headers"])
        duplicate = next((name for name in sorted(_SINGLE) if counts[name] > 1), None)
        if duplicate:
            raise InvalidRequest(f"the header {duplicate.decode()!r} is sent twice: send it once")

    async def body(self) -> bytes:
        """The whole body. Raises TooLarge, RequestTimeout, InvalidRequest for an encoded one, and
        ClientGone if the client disconnects; QuotaExceeded or NoCapacity as ``count_buffered``
        does."""
        headers = self.headers
        if b"transfer-encoding" in headers or b"content-encoding" in headers:
            self._refuse_encoded()
        whole = self.connection.arrived() if self.connection else None
        if whole is None:
            declared = headers.get(b"content-length", b"")
            if declared.isdigit() and int(declared) > self.body_limit_bytes:
                raise self._too_large()
            message = await self._message()
            whole = message.get("body", b"")
            if message.get("more_body"):
                return await self._rest(whole)
        if len(whole) > self.body_limit_bytes:
            raise self._too_large()
        self.body_bytes = len(whole)
        return whole

    async def _rest(self, first: bytes) -> bytes:
        part, parts, received = first, [first], len(first)
        self.count_buffered(len(first))
        more = True
        while more:
            if len(part) > BULK_BYTES:
                await ROUND_ROBIN.take(self.tenant)
            message = await self._message()
            part = message.get("body", b"")
            self.count_buffered(len(part))
            if len(parts[-1]) < TINY_BYTES:
                parts[-1] += part
            else:
                parts.append(part)
            received += len(part)
            more = message.get("more_body", False)
            if received > self.body_limit_bytes:
                raise self._too_large()
        self.body_bytes = received
        return b"".join(parts)

    async def _message(self) -> Any:
        # What asyncio.timeout does, at a quarter of its cost: the body is usually here already.
        task, loop = _current_task(), asyncio.get_running_loop()
        now = time.perf_counter()
        deadline = now + self.body_timeout_s
        if self.deadline < deadline:
            deadline = now + self.remaining_s()
        timer = loop.call_later(deadline - now + TIMER_S, task.cancel)
        try:
            message = await self.receive()
        except asyncio.CancelledError:
            if time.perf_counter() < deadline or task.uncancel():
                raise
            raise RequestTimeout("the body did not arrive in time: send it faster") from None
        finally:
            timer.cancel()
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    def _refuse_encoded(self) -> None:
        coding = self.headers.get(b"transfer-encoding", b"chunked").lower()
        if coding != b"chunked" or (
            b"transfer-encoding" in self.headers and self.scope.get("http_version") == "1.0"
        ):
            raise InvalidRequest("Transfer-Encoding must be 'chunked', and HTTP's version 1.1")
        encoding = self.headers.get(b"content-encoding", b"identity").lower()
        if encoding != b"identity":
            raise InvalidRequest("Content-Encoding is not supported: send the body uncompressed")

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is over {self.body_limit_bytes} bytes: send a smaller one")

    async def while_connected(self, work: Coroutine[object, object, T]) -> T:
        """Run ``work``, and cancel it (and with it the work upstream) if the client disconnects.

        Raises ClientGone in that case.
        """
        task, connection = _current_task(), self.connection
        if connection is None:
            return await self._while_receiving(task, work)
        is_gone = False

        def end() -> None:
            nonlocal is_gone
            is_gone = True
            task.cancel()

        connection.when_gone = end
        try:
            return await work
        except asyncio.CancelledError:
            if is_gone and not task.uncancel():
                raise ClientGone from None
            raise
        finally:
            connection.when_gone = None

    async def _while_receiving(
        self, task: "asyncio.Task[Any]", work: Coroutine[object, object, T]
    ) -> T:
        """``while_connected`` for a server that tells of a disconnect only in ``receive``."""
        watch: list[asyncio.Task[None]] = []
        handle = asyncio.get_running_loop().call_later(
            DISCONNECT_WATCH_S, lambda: watch.append(asyncio.ensure_future(self._cancel(task)))
        )
        try:
            return await work
        except asyncio.CancelledError:
            if watch and watch[0].done() and not watch[0].cancelled() and not task.uncancel():
                raise ClientGone from None
            raise
        finally:
            handle.cancel()
            for cancellation in watch:
                cancellation.cancel()

    async def _cancel(self, task: "asyncio.Task[Any]") -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        task.cancel()


def _current_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine always runs in a task
    return task


def new_request_id() -> str:
    return f"{random.getrandbits(64):016x}"
