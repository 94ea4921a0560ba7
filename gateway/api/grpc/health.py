"""grpc.health.v1, which like /readyz needs no key. So it must cost next to nothing.

The package grpcio-health-checking is not used: its servicer parses whole messages, bounds
neither them nor the watches, and is told each status, while ours is what /readyz says when asked.

A message is read only to learn which service it names. gRPC buffers it until it is complete,
however long it gets, so only a few are read at a time; while those arrive, other calls are answered
unread, for the whole server. Watches are few, and share one readiness check.
"""

import asyncio
from collections import Counter
from collections.abc import Callable

import grpc

SERVICE = "grpc.health.v1.Health"
MESSAGE_BYTES = 256
MESSAGE_S = 5.0
READS = 2  # at a time, for all callers together
WATCHES, WATCHES_FROM_ONE = 128, 16  # in all, and per peer address
WATCH_S = 600.0  # a client that is still there watches again
POLL_S = 0.5
SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
_TOO_MANY = "too many watches are open: try again later"


class Health:
    """``services`` can be checked by name; ``is_ready`` says whether they can be used."""

    def __init__(self, services: tuple[str, ...], is_ready: Callable[[], bool]) -> None:
        self._known = {b""} | {_request(service) for service in services}
        self._is_ready = is_ready
        self._reads = 0
        self._watches: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._current = b""
        self._poller: asyncio.Task[None] | None = None
        self._has_closed = False

    async def check(self, requests: object, call: grpc.aio.ServicerContext) -> None:
        """The status now; NOT_FOUND for an unknown service."""
        if not await self._is_known(call):
            await call.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        await call.write(self._status())

    async def watch(self, requests: object, call: grpc.aio.ServicerContext) -> None:
        """The status now, and again whenever it changes."""
        host = call.peer().rpartition(":")[0]
        if self._watches.total() >= WATCHES or self._watches[host] >= WATCHES_FROM_ONE:
            await call.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, _TOO_MANY)
        self._watches[host] += 1
        try:
            is_known = await self._is_known(call)
            if self._poller is None:
                self._current = self._status()
                self._poller = asyncio.create_task(self._poll())
            async with asyncio.timeout(WATCH_S):
                await self._send_changes(call, is_known)
        except TimeoutError:
            await call.abort(
                grpc.StatusCode.UNAVAILABLE, f"a watch ends after {WATCH_S:g} s: watch again"
            )
        finally:
            self._watches[host] -= 1
            if not self._watches[host]:
                del self._watches[host]
            if not self._watches and self._poller:
                self._poller.cancel()
                self._poller = None

    async def _send_changes(self, call: grpc.aio.ServicerContext, is_known: bool) -> None:
        last_sent = b""
        while True:
            status = self._current if is_known else SERVICE_UNKNOWN
            if status != last_sent:
                await call.write(status)
                last_sent = status
            await self._changed.wait()
            if self._has_closed:
                await call.abort(grpc.StatusCode.UNAVAILABLE, "the gateway is stopping")

    def close(self) -> None:
        """End every watch: the server is stopping."""
        self._has_closed = True
        self._changed.set()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            status = self._status()
            if status != self._current:
                self._current = status
                self._changed.set()
                self._changed = asyncio.Event()

    async def _is_known(self, call: grpc.aio.ServicerContext) -> bool:
        """Whether the call's message names a known service; aborts the call when the message is
        not a HealthCheckRequest, or does not arrive."""
        if self._reads >= READS:
            return True
        self._reads += 1
        try:
            async with asyncio.timeout(MESSAGE_S):
                data = await call.read()
        except TimeoutError:
            await call.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the message did not arrive")
        finally:
            self._reads -= 1
        if data is grpc.aio.EOF or len(data) > MESSAGE_BYTES:
            await call.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"send one message of at most {MESSAGE_BYTES} bytes",
            )
        return data in self._known

    def _status(self) -> bytes:
        return SERVING if self._is_ready() else NOT_SERVING


def _request(service: str) -> bytes:
    """The HealthCheckRequest for a service."""
    return b"\n" + bytes([len(service)]) + service.encode()
