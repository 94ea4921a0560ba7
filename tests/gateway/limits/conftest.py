from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from gateway.limits.limiter import Limiter
from gateway.limits.redis.store import RedisStore
from tests.gateway.limits.redis_server import RedisServer


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest_asyncio.fixture
async def limiter(server: RedisServer) -> AsyncIterator[Limiter]:
    """One gateway of two, with its limits in Redis."""
    limiter = Limiter(RedisStore(server.url), gateways=2)
    await limiter.heartbeat()
    try:
        yield limiter
    finally:
        await limiter.close()
