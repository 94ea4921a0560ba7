"""The server: every worker has one on the same port, and the kernel shares out the connections.

A call is let in before its message is read: every handler is one of a stream, which on the wire is
the same, because gRPC reads a unary handler's message first. So a stranger cannot make us hold it.
"""

import asyncio
import logging
import math
import resource
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from gateway.api.grpc.health import SERVICE as HEALTH
from gateway.api.grpc.health import Health
from gateway.api.grpc.holdings import Holdings
from gateway.api.grpc.methods import Handler, Methods
from gateway.api.grpc.reflection import VERSIONS, Reflection, service_name
from gateway.api.grpc.status import STATUS, as_metadata, shortened, trailers
from gateway.api.grpc.stream import InferStream
from gateway.api.grpc.unread import Unread
from gateway.core import Gateway
from gateway.errors import (
    DeadlineExceeded,
    Forbidden,
    GatewayError,
    Internal,
    InvalidRequest,
    TooLarge,
)
from gateway.http.handler import declared, needs
from gateway.http.render import CLIENT_LEFT, Api, status_of
from gateway.http.request_context import RequestContext
from gateway.settings import Settings
from gateway.upstream.probes import readiness
from modelspec.address import joined, resolved

log = logging.getLogger("gateway")
SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
INFER, STREAM = "ModelInfer", "ModelStreamInfer"
SMALL_BYTES = 4096  # of a message that names a model at most
# An answer over it keeps its place in the limits until it was read. Any other one is a matter of a
# moment, unless its connection is full of those: then its bytes and its patience are bound enough.
SMALL_ANSWER_BYTES = 64 * 1024
LAST_S = 1.0  # in which a stream's status is taken, behind an answer that may not have been
STOP_S = 5.0
REFLECTION_S = 5.0  # without a question
METADATA_LIMIT_BYTES = 32 * 1024
HANDSHAKE_MS = 8_000
IDLE_MS = 300_000  # without a call
PING_MS = 10_000
MOST_CONNECTIONS = 4096
_Work = Callable[[RequestContext], Awaitable[bytes | None]]


class GrpcServer:
    """``start`` and ``stop`` it in the application's lifespan, while the gateway is open."""

    def __init__(self, gateway: Gateway, port: int) -> None:
        """``port`` 0 takes a free one."""
        self.gateway, self._port = gateway, port
        self._server: Any = None
        self._has_ended = False
        settings = gateway.settings
        self._holdings = Holdings(settings.caller_held_bytes, settings.body_limit_bytes)
        self._reflecting = Holdings(settings.caller_held_bytes, settings.body_limit_bytes)
        self._unread = Unread(settings.answer_patience_s)
        self._leaving: set[asyncio.Future[None]] = set()

    async def start(self) -> int:
        """Serve; the port. RuntimeError when it is taken."""
        settings = self.gateway.settings
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", settings.body_limit_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", settings.max_inflight),
                # Else a client that uploads fast soon has 64 MB of room on every stream, read or
                # not. Without it there are 64 KiB, and the whole message once that is asked for.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.max_metadata_size", METADATA_LIMIT_BYTES),
                ("grpc.absolute_max_metadata_size", METADATA_LIMIT_BYTES),
                # Identity only: a small message must not become a large one in our memory.
                ("grpc.compression_enabled_algorithms_bitset", 1),
                # Whoever connects and says nothing is gone soon: to the end of TLS, and of HTTP/2's
                # first frame.
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
                ("grpc.http2.settings_timeout", HANDSHAKE_MS),
                ("grpc.max_allowed_incoming_connections", _most_connections()),
                ("grpc.max_connection_idle_ms", IDLE_MS),
                ("grpc.keepalive_time_ms", 60_000),  # a client that vanished is noticed
                ("grpc.keepalive_timeout_ms", 20_000),
                # Clients may ping, but whoever does it more often is told to calm down.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_ping_strikes", 2),
            ]
        )
        self._server.add_generic_rpc_handlers(self._handlers())
        port = self._open(settings)
        await self._server.start()
        return port

    def _open(self, settings: Settings) -> int:
        """The port, of two if there is one for certificates."""
        host = resolved(settings.host)[1]
        address = joined(host, self._port)
        if not settings.tls_certificate_file:
            return int(self._server.add_insecure_port(address))
        from gateway.http.tls import Tls

        tls = Tls(settings)
        if settings.grpc_certificate_port:
            demanding = joined(host, settings.grpc_certificate_port)
            self._server.add_secure_port(demanding, tls.grpc(demanding=True))
        return int(self._server.add_secure_port(address, tls.grpc(demanding=False)))

    async def serve(self) -> None:
        """Until the server has ended, which it should not; called again, start another one."""
        if self._has_ended:
            await self.start()
            self._has_ended = False
        # Shielded: cancelled itself, it would leave a server that cannot be stopped any more.
        await asyncio.shield(asyncio.ensure_future(self._server.wait_for_termination()))
        self._has_ended = True

    async def stop(self, grace_s: float = STOP_S) -> None:
        """Take no more calls; those under way may end within ``grace_s``, then they are cut."""
        if self._server:
            await self._server.stop(grace_s)

    def _handlers(self) -> tuple[Any, ...]:
        offered = Methods(self.gateway).table()
        unary = grpc.stream_unary_rpc_method_handler
        handler = grpc.stream_stream_rpc_method_handler
        methods = {
            name: unary(self._unary(name, offered.get(name, _closed)))
            for name in SERVICE.methods_by_name
        }
        methods[STREAM] = handler(self._stream)
        generic = grpc.method_handlers_generic_handler
        health = Health((SERVICE.full_name,), lambda: not any(readiness(self.gateway).values()))
        self._reflection = Reflection({STREAM, *offered})
        reflection = {"ServerReflectionInfo": handler(self._reflect)}
        return (
            generic(SERVICE.full_name, methods),
            generic(HEALTH, {"Check": handler(health.check), "Watch": handler(health.watch)}),
            *(generic(service_name(version), reflection) for version in VERSIONS),
        )

    def _unary(self, name: str, handler: Handler) -> Any:
        action = declared(handler).action
        limit_bytes = self.gateway.settings.body_limit_bytes if name == INFER else SMALL_BYTES

        async def call(requests: Any, call: Any) -> bytes | None:
            async def work(context: RequestContext) -> bytes:
                data = await self._message(context, call, limit_bytes)
                answer = await handler(context, data)
                self._hold_until_read(context, len(answer))
                if context.limit_headers:
                    await call.send_initial_metadata(as_metadata(context.limit_headers))
                return answer

            return await self._governed(name, action, call, work)

        return call

    async def _message(self, context: RequestContext, call: Any, limit_bytes: int) -> bytes:
        """The one message of a call; DeadlineExceeded when it does not come in time."""
        caller = _caller(context)
        context.hold(0)
        async with asyncio.timeout(context.remaining_s()), self._holdings.arriving(caller):
            data: bytes = await call.read()
        if data is grpc.aio.EOF:
            raise InvalidRequest("the call carries no message")
        if len(data) > limit_bytes:
            raise TooLarge(f"the message is over {limit_bytes} bytes: send a smaller one")
        return data

    def _hold_until_read(self, context: RequestContext, size: int) -> None:
        """gRPC writes the answer when we are through with it: it counts against its caller, and a
        large one holds its place in the limits, until then, and it has to be read in time.
        QuotaExceeded or NoCapacity when the caller, or all callers, have too many."""
        context.hold(size)
        shared_slots: list[AbstractAsyncContextManager[Any]] | None = None
        if size > SMALL_ANSWER_BYTES:
            shared_slots, context.entered = context.entered, None

        def is_read(task: asyncio.Task[Any]) -> None:
            context.release()
            if shared_slots:
                context.entered = shared_slots
                leaving = asyncio.ensure_future(context.leave(None))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)

        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a handler always runs in a task
        task.add_done_callback(is_read)
        self._unread.bound(size, context.request_id)

    async def _stream(self, requests: Any, call: Any) -> None:
        async def work(context: RequestContext) -> None:
            await InferStream(self.gateway, self._holdings, context, call).run(requests)

        await self._governed(STREAM, "infer", call, work)

    async def _reflect(self, requests: Any, call: Any) -> None:
        async def work(context: RequestContext) -> None:
            caller, task = _caller(context), asyncio.current_task()
            fault: GatewayError | None = None

            def end(why: GatewayError) -> None:
                nonlocal fault
                fault = why
                if task:
                    task.cancel()

            self._holdings.open_stream(caller, end)
            try:
                with self.gateway.access_control.watching(context, end, tuple, tuple):
                    # Whatever is asked may be as large as any message, until it is here.
                    async with self._reflecting.arriving(caller):
                        await self._reflection.run(call, REFLECTION_S)
            except asyncio.CancelledError:
                if fault is None or task is None:
                    raise
                task.uncancel()
                raise fault from None
            finally:
                self._holdings.leave(caller, end)

        await self._governed("ServerReflectionInfo", "read", call, work)

    async def _governed(self, name: str, action: str, call: Any, work: _Work) -> bytes | None:
        """The edge of this API: identity before anything is read, and errors as gRPC's."""
        context, status, is_recorded = self._context(name, call), CLIENT_LEFT, False
        fault: GatewayError | None = None
        try:
            await self.gateway.access_control.identify(context)
            context.require(action)
            answer = await work(context)
            await context.leave(None)
            call.set_trailing_metadata(trailers(context.request_id))
            status = status_of(context.fault, Api.V2) if context.fault else 200
            is_recorded = name == STREAM  # it records its messages, and what goes wrong with them
            return answer
        except Exception as error:
            fault = _fault(error, context)
            status = status_of(fault, Api.V2)
            is_recorded = fault is context.fault
        finally:
            await context.leave(fault)
            self.gateway.metrics.record(context, status, self.gateway.catalogue)
            if not is_recorded:
                self.gateway.access_control.record(context, status)
        self._unread.bound(0, context.request_id, LAST_S if name == STREAM else None)
        await call.abort(
            STATUS[fault.code],
            f"{shortened(fault.message)} (request {context.request_id})",
            trailers(context.request_id, fault),
        )
        return None

    def _context(self, name: str, call: Any) -> RequestContext:
        """The call as the policy knows requests."""
        given = call.invocation_metadata() or ()
        headers = [(k.encode(), v if isinstance(v, bytes) else v.encode()) for k, v in given]
        scope: dict[str, Any] = {
            "path": f"/{SERVICE.full_name}/{name}",
            "headers": headers,
            "client": _address(call.peer()),
        }
        if self.gateway.settings.grpc_certificate_port:
            from gateway.http.tls import shown_to_grpc

            scope |= shown_to_grpc(call)
        left_s = call.time_remaining()
        return self.gateway.context(scope, _never, math.inf if left_s is None else left_s)


@needs("read")
async def _closed(context: RequestContext, data: bytes) -> bytes:
    raise Forbidden(
        f"{context.path.rpartition('/')[2]} is not offered through the gateway: tensors travel in "
        "the request itself, and models are published with `tidegate publish`"
    )


def _fault(error: Exception, context: RequestContext) -> GatewayError:
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, TimeoutError):
        return DeadlineExceeded("there was no answer in time: try again or send less")
    log.error("%s %s failed", context.request_id, context.path, exc_info=error)
    return Internal("the gateway failed: report the request id")


def _most_connections() -> int:
    """To each port: a third of the descriptors that this process may have, so that whoever opens
    connections here takes none from HTTP."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if soft < 0 else max(16, min(MOST_CONNECTIONS, soft // 3))


def _caller(context: RequestContext) -> str:
    return context.principal.id if context.principal else ""


def _address(peer: str) -> tuple[str, int] | None:
    """gRPC's ``ipv4:127.0.0.1:5000`` and ``ipv6:%5B::1%5D:5000`` as ASGI's (host, port)."""
    kind, _, rest = peer.partition(":")
    host, _, port = rest.rpartition(":")
    host = host.replace("%5B", "").replace("%5D", "")
    return (host, int(port)) if kind in ("ipv4", "ipv6") and port.isdecimal() else None


async def _never() -> Any:
    """gRPC cancels the task of a client that leaves: there is nothing to watch."""
    await asyncio.Future()
