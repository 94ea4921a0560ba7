"""One gateway that keeps sending requests: ``hammer.py URL SECONDS CLOCK_SKEW_S TIMEOUT_S``.

Prints each admission as "requested started ended" in seconds of the system's clock. Its own clock
is skewed.
"""

import asyncio
import sys
import time

from gateway.errors import QuotaExceeded
from gateway.limits.limit import Subject, checks_of
from gateway.limits.limiter import Limiter
from gateway.limits.redis import connection as redis_connection
from gateway.limits.redis import store as redis_store
from gateway.limits.redis.store import RedisStore
from tests.gateway.limits.made import limit_of

RATE, BURST, AT_ONCE = 200, 50, 7
LIMITS = [limit_of("key", "requests", RATE, 1, BURST), limit_of("tenant", "concurrency", AT_ONCE)]
TASKS = 8
GATEWAYS = 4


async def hammer(limiter: Limiter, until: float) -> None:
    checks = checks_of(LIMITS, Subject("acme", "k1", "chat"))
    while time.time() < until:
        requested = time.time()
        try:
            async with limiter.admit(checks):
                started = time.time()
                await asyncio.sleep(0.005)
                sys.stdout.write(f"{requested} {started} {time.time()}\n")
                sys.stdout.flush()
        except QuotaExceeded:
            await asyncio.sleep(0.003)


async def main(url: str, seconds: float, skew_s: float, timeout_s: float) -> None:
    redis_connection.TIMEOUT_S = redis_store.TIMEOUT_S = timeout_s
    redis_store._LEASE_US = 2_000_000
    limiter = Limiter(RedisStore(url), gateways=GATEWAYS, clock=lambda: time.monotonic() + skew_s)
    await limiter.heartbeat()
    until = time.time() + seconds
    await asyncio.gather(*(hammer(limiter, until) for _ in range(TASKS)))
    await limiter.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(float, sys.argv[2:])))
