"""The gRPC server: every worker runs one on the same port, and the kernel spreads connections.

A call is authorised before its message is read: every handler takes a stream, which looks the same
on the wire, because gRPC reads a unary handler's message first. So a stranger cannot make us
buffer it.
"""

import asyncio
import logging
import math
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from gateway.api.grpc.caller_bounds import CallerBounds
from gateway.api.grpc.health import SERVICE as HEALTH
from gateway.api.grpc.health import Health
from gateway.api.grpc.methods import Handler, Methods
from gateway.api.grpc.reflection import VERSIONS, Reflection, service_name
from gateway.api.grpc.status import STATUS, as_metadata, shortened, trailers
from gateway.api.grpc.stream import InferStream
from gateway.api.grpc.unread import Unread
from gateway.background import readiness
from gateway.core import Gateway
from gateway.draining import DRAIN
from gateway.errors import (
    DeadlineExceeded,
    Forbidden,
    GatewayError,
    Internal,
    InvalidRequest,
    TooLarge,
)
from gateway.http.handler import declared, needs
from gateway.http.request_context import RequestContext
from gateway.render import CLIENT_LEFT, Api, status_of
from gateway.settings import Settings
from modelspec.address import joined, resolved

log = logging.getLogger("gateway")
SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
INFER, STREAM = "ModelInfer", "ModelStreamInfer"
SMALL_BYTES = 4096  # of a message that at most names a model
# A larger response keeps its slot in the limits until it was read. A smaller one is read in a
# moment, unless its connection is full of them: then its bytes and its timeout are bound enough.
SMALL_RESPONSE_BYTES = 64 * 1024
LAST_S = 1.0  # for a client to read a stream's status, after a response it may not have read
STOP_S = 5.0
REFLECTION_S = 5.0  # without a request
METADATA_LIMIT_BYTES = 32 * 1024
HANDSHAKE_MS = 8_000
IDLE_MS = 300_000  # without a call
PING_MS = 10_000
MOST_CONNECTIONS = 4096
_Work = Callable[[RequestContext], Awaitable[bytes | None]]


class GrpcServer:
    """Start and stop it in the application's lifespan, while the gateway is open."""

    def __init__(self, gateway: Gateway, port: int) -> None:
        """With ``port`` 0 the system picks a free port."""
        self.gateway, self._port = gateway, port
        self._server: Any = None
        self._has_ended = self._is_stopping = False
        settings = gateway.settings
        self._caller_bounds = CallerBounds(
            settings.caller_buffered_bytes, settings.body_limit_bytes
        )
        self._unread = Unread(settings.send_timeout_s)
        self._releases: set[asyncio.Future[None]] = set()

    async def start(self) -> int:
        """Start serving; return the port. Raises RuntimeError when it cannot be bound."""
        settings = self.gateway.settings
        self._server = grpc.aio.server(
            options=[
                # For other workers: a port that another gateway has is refused before.
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", settings.body_limit_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", settings.max_inflight),
                # With the probe, a client that uploads fast soon gets a window of 64 MB on every
                # stream, read or not. Without it: 64 KiB, and the whole message once we read it.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.max_metadata_size", METADATA_LIMIT_BYTES),
                ("grpc.absolute_max_metadata_size", METADATA_LIMIT_BYTES),
                # No compression: a small message must not become a large one in our memory.
                ("grpc.compression_enabled_algorithms_bitset", 1),
                # A client that connects and sends nothing is soon disconnected: until the end of
                # the TLS handshake, and until HTTP/2's first frame.
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
                ("grpc.http2.settings_timeout", HANDSHAKE_MS),
                ("grpc.max_allowed_incoming_connections", _max_connections()),
                ("grpc.max_connection_idle_ms", IDLE_MS),
                ("grpc.keepalive_time_ms", 60_000),  # notices a client that vanished
                ("grpc.keepalive_timeout_ms", 20_000),
                # Clients may ping; one that pings more often gets ENHANCE_YOUR_CALM.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_ping_strikes", 2),
            ]
        )
        self._server.add_generic_rpc_handlers(self._handlers())
        port = self._open(settings)
        await self._server.start()
        if self.stop not in DRAIN.closers:
            DRAIN.closers.append(self.stop)
        return port

    def _open(self, settings: Settings) -> int:
        """Bind the port, and the one for client certificates if it is set; return the first."""
        host = resolved(settings.host)[1]
        address = joined(host, self._port)
        if not settings.tls_certificate_file:
            return int(self._server.add_insecure_port(address))
        from gateway.http.tls import Tls

        tls = Tls(settings)
        if settings.grpc_certificate_port:
            certificate_address = joined(host, settings.grpc_certificate_port)
            self._server.add_secure_port(certificate_address, tls.grpc(demanding=True))
        return int(self._server.add_secure_port(address, tls.grpc(demanding=False)))

    async def serve(self) -> None:
        """Return only when the server has ended, which it should not; a second call restarts it."""
        if self._has_ended:
            await self.start()
            self._has_ended = False
        # Shielded: if this were cancelled itself, the server could no longer be stopped.
        await asyncio.shield(asyncio.ensure_future(self._server.wait_for_termination()))
        self._has_ended = True
        if self._is_stopping:
            await asyncio.get_running_loop().create_future()  # until the supervisor closes

    async def stop(self, grace_s: float = STOP_S) -> None:
        """Take no more calls; those under way have ``grace_s`` to end, then they are cut."""
        self._is_stopping = True
        if self._server:
            self._health.close()
            await self._server.stop(grace_s)

    def _handlers(self) -> tuple[object, ...]:
        offered = Methods(self.gateway).table()
        unary = grpc.stream_unary_rpc_method_handler
        stream = grpc.stream_stream_rpc_method_handler
        service = grpc.method_handlers_generic_handler
        methods = {
            name: unary(self._unary(name, offered.get(name, _not_offered)))
            for name in SERVICE.methods_by_name
        }
        methods[STREAM] = stream(self._stream)
        health = self._health = Health(
            (SERVICE.full_name,), lambda: not any(readiness(self.gateway).values())
        )
        self._reflection = Reflection({STREAM, *offered})
        reflection = {"ServerReflectionInfo": stream(self._reflect)}
        return (
            service(SERVICE.full_name, methods),
            service(HEALTH, {"Check": stream(health.check), "Watch": stream(health.watch)}),
            *(service(service_name(version), reflection) for version in VERSIONS),
        )

    def _unary(self, name: str, handler: Handler) -> object:
        action = declared(handler).action
        limit_bytes = self.gateway.settings.body_limit_bytes if name == INFER else SMALL_BYTES

        async def handle(
            requests: AsyncIterator[bytes], call: grpc.aio.ServicerContext
        ) -> bytes | None:
            async def work(context: RequestContext) -> bytes:
                data = await self._message(context, call, limit_bytes)
                response = await handler(context, data)
                self._hold_until_read(context, len(response))
                if context.limit_headers:
                    await call.send_initial_metadata(as_metadata(context.limit_headers))
                return response

            return await self._governed(name, action, call, work)

        return handle

    async def _message(
        self, context: RequestContext, call: grpc.aio.ServicerContext, limit_bytes: int
    ) -> bytes:
        """The only message of a call. Raises TimeoutError when it does not arrive in time,
        InvalidRequest without one, TooLarge over ``limit_bytes``."""
        caller = _caller(context)
        context.count_buffered(0)
        async with asyncio.timeout(context.remaining_s()), self._caller_bounds.arriving(caller):
            data: bytes = await call.read()
        if data is grpc.aio.EOF:
            raise InvalidRequest("the call carries no message")
        if len(data) > limit_bytes:
            raise TooLarge(f"the message is over {limit_bytes} bytes: send a smaller one")
        return data

    def _hold_until_read(self, context: RequestContext, size: int) -> None:
        """gRPC writes the response after our handler returns: until it was read it counts against
        its caller, and a large one keeps its slot in the limits; and it has to be read in time.
        Raises QuotaExceeded or NoCapacity when the caller, or all callers, have too many."""
        context.count_buffered(size)
        entered: list[AbstractAsyncContextManager[object]] | None = None
        if size > SMALL_RESPONSE_BYTES:
            entered, context.entered = context.entered, None

        def on_read(task: asyncio.Task[object]) -> None:
            context.release_buffered()
            if entered:
                context.entered = entered
                release = asyncio.ensure_future(context.leave(None))
                self._releases.add(release)
                release.add_done_callback(self._releases.discard)

        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a handler always runs in a task
        task.add_done_callback(on_read)
        self._unread.bound(size, context.request_id)

    async def _stream(self, requests: AsyncIterator[bytes], call: grpc.aio.ServicerContext) -> None:
        async def work(context: RequestContext) -> None:
            await InferStream(self.gateway, self._caller_bounds, context, call).run(requests)

        await self._governed(STREAM, "infer", call, work)

    async def _reflect(
        self, requests: AsyncIterator[bytes], call: grpc.aio.ServicerContext
    ) -> None:
        async def work(context: RequestContext) -> None:
            caller, task = _caller(context), asyncio.current_task()
            fault: GatewayError | None = None

            def end(error: GatewayError) -> None:
                nonlocal fault
                fault = error
                if task:
                    task.cancel()

            self._caller_bounds.open_stream(caller, end)
            try:
                with self.gateway.access_control.watching(context, end, tuple, tuple):
                    # Until it has arrived, a request may be as large as any message.
                    async with self._caller_bounds.arriving(caller, "reflection"):
                        await self._reflection.run(call, REFLECTION_S)
            except asyncio.CancelledError:
                if fault is None or task is None:
                    raise
                task.uncancel()
                raise fault from None
            finally:
                self._caller_bounds.leave(caller, end)

        await self._governed("ServerReflectionInfo", "read", call, work)

    async def _governed(
        self, name: str, action: str, call: grpc.aio.ServicerContext, work: _Work
    ) -> bytes | None:
        """This API's middleware: identifies the caller before anything is read, renders errors as
        gRPC statuses, and records the call."""
        context = self._context(name, call)
        status = CLIENT_LEFT
        is_recorded = False
        fault: GatewayError | None = None
        try:
            await self.gateway.access_control.identify(context)
            context.require(action)
            response = await work(context)
            await context.leave(None)
            call.set_trailing_metadata(trailers(context))
            status = status_of(context.fault, Api.V2) if context.fault else 200
            is_recorded = name == STREAM  # a stream records its messages and their errors itself
            return response
        except Exception as error:
            fault = _fault(error, context)
            status = status_of(fault, Api.V2)
            is_recorded = fault is context.fault
        finally:
            await context.leave(fault)
            if not context.is_stream:
                self.gateway.finished(context, status)
            if not is_recorded:
                self.gateway.access_control.record(context, status)
        self._unread.bound(0, context.request_id, LAST_S if name == STREAM else None)
        await call.abort(
            STATUS[fault.code],
            f"{shortened(fault.message)} (request {context.request_id})",
            trailers(context, fault),
        )
        return None

    def _context(self, name: str, call: grpc.aio.ServicerContext) -> RequestContext:
        """The call as a request context: its metadata as headers, its path and its peer."""
        metadata = call.invocation_metadata() or ()
        headers = [
            (key.encode(), value if isinstance(value, bytes) else value.encode())
            for key, value in metadata
        ]
        scope: dict[str, Any] = {
            "path": f"/{SERVICE.full_name}/{name}",
            "headers": headers,
            "client": _address(call.peer()),
        }
        if self.gateway.settings.grpc_certificate_port:
            from gateway.http.tls import shown_to_grpc

            scope |= shown_to_grpc(call)
        remaining_s = call.time_remaining()
        deadline_s = math.inf if remaining_s is None else remaining_s
        context = self.gateway.context(scope, _never_disconnects, deadline_s)
        context.api, context.route = "grpc", name
        return context


@needs("read")
async def _not_offered(context: RequestContext, data: bytes) -> bytes:
    raise Forbidden(
        f"{context.path.rpartition('/')[2]} is not offered through the gateway: send tensors in "
        "the request itself, and publish models with `tidegate publish`"
    )


def _fault(error: Exception, context: RequestContext) -> GatewayError:
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, TimeoutError):
        return DeadlineExceeded("the request did not finish in time: try again or send less")
    log.error("%s %s failed", context.request_id, context.path, exc_info=error)
    return Internal("the gateway failed: report the request id")


def _max_connections() -> int:
    """Per port: a third of the descriptors that this process may have, so that connections here
    take none from HTTP."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 0:  # no limit
        return MOST_CONNECTIONS
    return max(16, min(MOST_CONNECTIONS, soft // 3))


def _caller(context: RequestContext) -> str:
    return context.principal.id if context.principal else ""


def _address(peer: str) -> tuple[str, int] | None:
    """gRPC's ``ipv4:127.0.0.1:5000`` and ``ipv6:%5B::1%5D:5000`` as ASGI's (host, port)."""
    scheme, _, address = peer.partition(":")
    host, _, port = address.rpartition(":")
    host = host.replace("%5B", "").replace("%5D", "")
    return (host, int(port)) if scheme in ("ipv4", "ipv6") and port.isdecimal() else None


async def _never_disconnects() -> Any:
    """An ASGI receive that never returns: gRPC itself cancels the task of a client that leaves."""
    await asyncio.Future()
