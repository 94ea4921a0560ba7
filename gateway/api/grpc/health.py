"""grpc.health.v1, which needs no key: as /readyz. So nothing of it may cost anything.

A message is read only to learn which service is meant. Until it is complete gRPC keeps it, however
long it gets, so a few are read at a time; while they arrive the others are answered unread, for
the whole server. Watches are few, and share one look at what is ready.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc

SERVICE = "grpc.health.v1.Health"
MESSAGE_BYTES = 256
MESSAGE_S = 5.0
READS = 2  # at a time, by all strangers together
WATCHES, WATCHES_FROM_ONE = 128, 16  # in all, and by the peer's address
WATCH_S = 600.0  # a client that is still there asks again
LOOK_S = 0.5
SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
_TOO_MANY = "too many calls of this kind at once: try again later"


class Health:
    """``services`` are those that may be asked for; ``is_ready`` says whether they can be used."""

    def __init__(self, services: tuple[str, ...], is_ready: Callable[[], bool]) -> None:
        self._known = {b""} | {_request(service) for service in services}
        self._is_ready = is_ready
        self._reading = 0
        self._watches: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._last = b""
        self._looking: asyncio.Task[None] | None = None

    async def check(self, requests: Any, call: Any) -> None:
        """NOT_FOUND for a service that there is not."""
        if not await self._is_known(call):
            await call.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        await call.write(self._status())

    async def watch(self, requests: Any, call: Any) -> None:
        """The status now, and whenever it has changed."""
        host = call.peer().rpartition(":")[0]
        if self._watches.total() >= WATCHES or self._watches[host] >= WATCHES_FROM_ONE:
            await call.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, _TOO_MANY)
        self._watches[host] += 1
        try:
            known = await self._is_known(call)
            if self._looking is None:
                self._last = self._status()
                self._looking = asyncio.create_task(self._look())
            async with asyncio.timeout(WATCH_S):
                await self._tell(call, known)
        except TimeoutError:
            await call.abort(grpc.StatusCode.UNAVAILABLE, "watched for long enough: ask again")
        finally:
            self._watches[host] -= 1
            if not self._watches[host]:
                del self._watches[host]
            if not self._watches and self._looking:
                self._looking.cancel()
                self._looking = None

    async def _tell(self, call: Any, known: bool) -> None:
        last_sent = b""
        while True:
            status = self._last if known else SERVICE_UNKNOWN
            if status != last_sent:
                await call.write(status)
                last_sent = status
            await self._changed.wait()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            status = self._status()
            if status != self._last:
                self._last = status
                self._changed.set()
                self._changed = asyncio.Event()

    async def _is_known(self, call: Any) -> bool:
        """Whether the service in the call's message is there; ends the call when it is no message
        of this kind, or does not come."""
        if self._reading >= READS:
            return True
        self._reading += 1
        try:
            async with asyncio.timeout(MESSAGE_S):
                data = await call.read()
        except TimeoutError:
            await call.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the message did not come")
        finally:
            self._reading -= 1
        if data is grpc.aio.EOF or len(data) > MESSAGE_BYTES:
            await call.abort(grpc.StatusCode.INVALID_ARGUMENT, "there must be one short message")
        return data in self._known

    def _status(self) -> bytes:
        return SERVING if self._is_ready() else NOT_SERVING


def _request(service: str) -> bytes:
    """The HealthCheckRequest for a service."""
    return b"\n" + bytes([len(service)]) + service.encode()
