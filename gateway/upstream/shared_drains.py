"""Drains in Redis: whichever gateway an operator tells, all that use this Redis follow.

A replica on a loopback address is another one on each machine and in each container, so its drain
concerns only gateways in the same place (``_name``). While Redis is unavailable, what was read last
goes on until its end, and nobody can set or lift a shared drain.

**A Redis that has lost its data lifts nothing**: every gateway writes what it read last again. Each
change has a number, so that an older copy of the data is noticed as well as none at all. What
somebody has set or lifted since then counts: Redis remembers what was lifted as long as a gateway
may know of a drain that was not.
"""

import asyncio
import ipaddress
import logging
import time
from functools import cache
from pathlib import Path
from typing import Any

from gateway.limits.redis.connection import TIMEOUT_S, Call, RedisConnection, Reply
from gateway.limits.redis.running_timeout import RunningTimeout
from gateway.upstream.drains import LONGEST_S, boot_id
from modelspec.address import host_and_port

log = logging.getLogger("gateway")
_KEY = "tidegate:drains"
_LONGEST_US = int(LONGEST_S * 1e6)
_SCRIPTS = {"drains": Path(__file__).with_suffix(".lua").read_text()}


class SharedDrains:
    """The drained replicas, by HOST:GRPC_PORT. Nothing here raises, and everything takes
    ``TIMEOUT_S`` at most."""

    def __init__(self, url: str) -> None:
        self._ends: dict[str, float] = {}  # name -> monotonic seconds
        # What Redis's data are, and how many changes they had; b"": nothing was read yet.
        self._state, self._changes = b"", 0
        self._connection = RedisConnection(
            url,
            Call("drains", [_KEY], [_LONGEST_US]),
            recovered=lambda: None,
            scripts=_SCRIPTS,
            outage="drains: Redis is unavailable (%s): until it responds, each gateway must be "
            "told by itself",
        )

    async def open(self) -> None:
        """Connect, if that is possible at once."""
        await self._connection.reached()

    async def set(self, address: str, seconds: float) -> bool:
        """Drain the replica for so many seconds from now (``LONGEST_S`` at most); whether Redis has
        it now."""
        return await self._call(_name(address), max(1, int(seconds * 1e6)))

    async def lift(self, address: str) -> bool:
        """Whether Redis has no drain of it any more."""
        return await self._call(_name(address), 0)

    async def current(self, addresses: frozenset[str]) -> frozenset[str]:
        """Which of these replicas are drained now."""
        await self._call()
        now = time.monotonic()
        return frozenset(
            address for address in addresses if self._ends.get(_name(address), 0.0) > now
        )

    async def close(self) -> None:
        await self._connection.close()

    async def _call(self, *change: str | int) -> bool:
        """Whether Redis made the change, and what it knows was read."""
        began = time.monotonic()
        try:
            async with RunningTimeout(TIMEOUT_S):
                reply = await self._send(*change)
                if isinstance(reply, list) and self._is_older(reply) and self._ends:
                    reply = await self._restore(began, reply)
        except TimeoutError:
            return False
        if not isinstance(reply, list):
            return False
        self._state, self._changes, *drained = reply
        self._ends = {
            bytes(name).decode(): began + us / 1e6
            for name, us in zip(drained[::2], drained[1::2], strict=True)
        }
        return True

    def _send(self, *change: str | int) -> "asyncio.Future[Reply]":
        return self._connection.call(Call("drains", [_KEY], [_LONGEST_US, *change]))

    def _is_older(self, reply: list[Any]) -> bool:
        """Whether these are other data than were read last, or what they were before."""
        state, changes, *_ = reply
        return self._state not in (b"", state) or changes < self._changes

    async def _restore(self, now: float, reply: Reply) -> Reply:
        """Write what was read last again; what Redis knows then (``reply`` if there is nothing to
        write), or None if it did not take all of it: it is tried again."""
        left_us = {name: int((end - now) * 1e6) for name, end in self._ends.items() if end > now}
        replies = await asyncio.gather(
            *(self._send(name, us, 1) for name, us in left_us.items() if us > 0)
        )
        if not replies:
            return reply
        if any(answer is None for answer in replies):
            return None
        log.warning("drains: Redis has lost data; set again, unless lifted: %s", set(left_us))
        return replies[-1]


def _name(address: str) -> str:
    """What the gateways that reach the same replica at this address call it."""
    host, _ = host_and_port(address)
    return f"{address} of {_place()}" if _is_loopback(host) else address


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"


@cache
def _place() -> str:
    """The network namespace of this process and the boot of its machine."""
    return f"{boot_id()} {Path('/proc/self/ns/net').stat().st_ino}"
