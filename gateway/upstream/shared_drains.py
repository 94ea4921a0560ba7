"""Drains in Redis: whichever gateway an operator tells, all that use this Redis follow.

A replica on a loopback address is another one on each machine and in each container, so its drain
concerns only gateways in the same place (``_name``). While Redis is unavailable, what was read last
goes on until its end, and nobody can set or lift a shared drain.
"""

import ipaddress
import time
from functools import cache
from pathlib import Path

from gateway.limits.redis.connection import TIMEOUT_S, Call, RedisConnection, Reply
from gateway.limits.redis.running_timeout import RunningTimeout
from gateway.upstream.drains import LONGEST_S, boot_id
from modelspec.address import host_and_port

_KEY = "tidegate:drains"
_LONGEST_US = int(LONGEST_S * 1e6)
_SCRIPTS = {"drains": Path(__file__).with_suffix(".lua").read_text()}


class SharedDrains:
    """The drained replicas, by HOST:GRPC_PORT. Nothing here raises, and everything takes
    ``TIMEOUT_S`` at most."""

    def __init__(self, url: str) -> None:
        self._ends: dict[str, float] = {}  # name -> monotonic seconds
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
        reply: Reply = None
        now = time.monotonic()
        try:
            async with RunningTimeout(TIMEOUT_S):
                reply = await self._connection.call(Call("drains", [_KEY], [_LONGEST_US, *change]))
        except TimeoutError:
            pass
        if not isinstance(reply, list):
            return False
        names, left_us = reply[::2], reply[1::2]
        self._ends = {
            bytes(name).decode(): now + us / 1e6 for name, us in zip(names, left_us, strict=True)
        }
        return True


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
