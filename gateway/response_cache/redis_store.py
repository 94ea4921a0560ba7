"""Responses in Redis, for all workers and gateways that use it. Whatever ails it is a miss."""

import time
from pathlib import Path
from typing import NamedTuple

from gateway.limits.redis.connection import Call, RedisConnection
from gateway.limits.redis.running_timeout import RunningTimeout

WAIT_S = 0.005  # the longest that a request waits for Redis
PAUSE_S = 1.0  # nobody asks a Redis that was late, for so long
# A connection is used by all requests in turn, and must have sent what it has within 50 ms.
MOST_BYTES = 64 * 1024  # larger responses stay in the memory of the worker that got them
_FORMAT = b"tgr1"
_SCRIPTS = {name: (Path(__file__).parent / f"{name}.lua").read_text() for name in ("get", "put")}


class StoredResponse(NamedTuple):
    """A response, and how long it may still be kept."""

    data: bytes
    remaining_s: float


class RedisStore:
    """Nothing here raises, and ``get`` takes ``WAIT_S`` at most.

    The connection is the one that the limits have a second of: no caller holds it, so that one who
    is cancelled cannot leave his response to another. Each response is stored with its key, and is
    a miss for any other.
    """

    def __init__(self, url: str) -> None:
        self._rests_until = 0.0
        self._connection = RedisConnection(
            url,
            Call("get", [_name(b"")], []),
            recovered=lambda: None,
            scripts=_SCRIPTS,
            outage="response cache: Redis is unavailable (%s): until it responds, each worker "
            "has only its own memory",
        )

    async def open(self) -> None:
        """Connect, if that is possible at once."""
        await self._connection.reached()

    async def get(self, key: bytes) -> StoredResponse | None:
        if time.monotonic() < self._rests_until:
            return None
        try:
            # A stall of this process is not Redis's fault, and nobody rests for it.
            async with RunningTimeout(WAIT_S):
                reply = await self._connection.call(Call("get", [_name(key)], []))
        except TimeoutError:
            self._rests_until = time.monotonic() + PAUSE_S
            return None
        match reply:
            case [bytes(stored), int(remaining_ms)] if stored.startswith(head := _FORMAT + key):
                return StoredResponse(stored[len(head) :], remaining_ms / 1000)
        return None

    def put(self, key: bytes, response: bytes, remaining_s: float) -> None:
        """Store the response for so long, if it is not too large; nobody waits for that."""
        if len(response) <= MOST_BYTES and time.monotonic() >= self._rests_until:
            value = b"".join((_FORMAT, key, response))
            self._connection.call(
                Call("put", [_name(key)], [value, max(1, int(remaining_s * 1000))])
            )

    async def close(self) -> None:
        await self._connection.close()


def _name(key: bytes) -> str:
    return f"tidegate:response:{key.hex()}"
