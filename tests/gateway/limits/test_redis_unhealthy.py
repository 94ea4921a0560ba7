"""A Redis that is frozen, paused, dead, restarted, slow or absent: the gateway grants its share at
once, and recovers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from gateway.errors import QuotaExceeded
from gateway.limits.limit import Limit, Subject, checks_of
from gateway.limits.limiter import Limiter
from gateway.limits.redis import connection as redis_connection
from gateway.limits.redis import store as redis_store
from gateway.limits.redis.store import RedisStore
from tests.gateway.limits.made import limit_of
from tests.gateway.limits.redis_server import RedisServer

HOUR = 3600
RPH = limit_of("key", "requests", 40, HOUR)
AT_ONCE = limit_of("tenant", "concurrency", 10)
TOKENS = limit_of("model", "tokens", 4000, HOUR)
ALL = [RPH, AT_ONCE, TOKENS]
SUBJECT = Subject("acme", "k1", "chat")
TIMEOUT_S = 0.5
HANG_S = 20.0  # a frozen Redis hangs for ever
RECOVERY_S = 20.0  # the one second, on a busy machine


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that answers late because this machine is busy is not the one that ails."""
    for module in (redis_connection, redis_store):
        monkeypatch.setattr(module, "TIMEOUT_S", TIMEOUT_S)


async def ask(limiter: Limiter, limits: list[Limit]) -> bool:
    """Whether one more is admitted; a decision that waits for a frozen Redis is a TimeoutError."""
    try:
        async with (
            asyncio.timeout(HANG_S),
            limiter.admit(checks_of(limits, SUBJECT, tokens=100)),
        ):
            return True
    except QuotaExceeded:
        return False


def decides_locally(limiter: Limiter) -> bool:
    return not limiter.redis._connection._healthy


async def recovered(limiter: Limiter) -> None:
    deadline = time.monotonic() + RECOVERY_S
    while decides_locally(limiter):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def assert_grants_its_share(limiter: Limiter) -> None:
    """Half of everything, since there are two gateways; nobody below that is refused."""
    concurrent = await asyncio.gather(*(ask(limiter, [RPH]) for _ in range(15)))
    assert all(concurrent)
    assert [await ask(limiter, ALL) for _ in range(8)] == [True] * 5 + [False] * 3
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(limiter.admit(checks_of([AT_ONCE], SUBJECT)))
        assert not await ask(limiter, [AT_ONCE])
    assert decides_locally(limiter)


async def assert_nothing_is_held(limiter: Limiter) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(10):
            await stack.enter_async_context(limiter.admit(checks_of([AT_ONCE], SUBJECT)))
    async with limiter.admit(checks_of([TOKENS], SUBJECT, tokens=4000)) as admission:
        admission.settle(0)
    assert not decides_locally(limiter)


async def test_frozen(limiter: Limiter, server: RedisServer):
    assert await ask(limiter, [RPH])
    # These are in flight when it freezes, and end before it is back.
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            checks = checks_of(ALL, SUBJECT, tokens=100)
            admission = await stack.enter_async_context(limiter.admit(checks))
            admission.settle(0)
        server.freeze()
        try:
            await assert_grants_its_share(limiter)
            await stack.aclose()
        finally:
            server.thaw()
    await recovered(limiter)
    await assert_nothing_is_held(limiter)


async def test_a_gateway_that_got_no_cpu_does_not_take_that_for_an_outage(limiter: Limiter):
    for _ in range(3):
        admission = limiter.admit(checks_of([RPH], SUBJECT))
        entering = asyncio.create_task(admission.__aenter__())
        for _ in range(3):
            await asyncio.sleep(0)  # it is sent
        time.sleep(1.2 * TIMEOUT_S)  # noqa: ASYNC251 - nothing of this process runs
        await entering
        await admission.__aexit__(None, None, None)
        assert admission.lease
        assert not decides_locally(limiter)


async def test_many_that_ended_meanwhile(limiter: Limiter, server: RedisServer):
    """The catching up after an outage must not look like the next one."""
    wide = limit_of("tenant", "concurrency", 100_000)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(6000):
            await stack.enter_async_context(limiter.admit(checks_of([wide], SUBJECT)))
        server.freeze()
        assert await ask(limiter, [wide])
    server.thaw()
    await recovered(limiter)
    deadline = time.monotonic() + HANG_S
    with server.client() as client:
        while any(client.zcard(key) for key in client.scan_iter("held:*")):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    assert not decides_locally(limiter)


async def test_paused(limiter: Limiter, server: RedisServer):
    with server.client() as client:
        client.execute_command("CLIENT", "PAUSE", 3000, "ALL")
    await assert_grants_its_share(limiter)
    await recovered(limiter)
    await assert_nothing_is_held(limiter)


async def test_dead_and_started_again(limiter: Limiter, server: RedisServer):
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(limiter.admit(checks_of([AT_ONCE], SUBJECT)))
        server.kill()
        await assert_grants_its_share(limiter)
        server.start()
        await recovered(limiter)
        # It has forgotten the four, and they were reported to it again.
        async with contextlib.AsyncExitStack() as others:
            for _ in range(6):
                await others.enter_async_context(limiter.admit(checks_of([AT_ONCE], SUBJECT)))
            assert not await ask(limiter, [AT_ONCE])
    await assert_nothing_is_held(limiter)


async def test_scripts_flushed(limiter: Limiter, server: RedisServer):
    with server.client() as client:
        client.script_flush()
    assert await ask(limiter, ALL)
    await recovered(limiter)
    assert await ask(limiter, ALL)


@contextlib.asynccontextmanager
async def slow_proxy(server: RedisServer, delays_s: list[float]) -> AsyncIterator[int]:
    """A port that leads to Redis; each reply comes ``delays_s[0]`` late."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_connection("127.0.0.1", server.port)

        async def forward_replies() -> None:
            while data := await from_redis.read(65536):
                await asyncio.sleep(delays_s[0])
                writer.write(data)

        replies = asyncio.create_task(forward_replies())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                to_redis.write(data)
        replies.cancel()
        to_redis.close()
        writer.close()

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield proxy.sockets[0].getsockname()[1]
    finally:
        proxy.close()


async def test_slow(server: RedisServer):
    delays_s = [0.0]
    async with slow_proxy(server, delays_s) as port:
        limiter = Limiter(RedisStore(f"redis://127.0.0.1:{port}"), gateways=2)
        await limiter.heartbeat()
        assert await ask(limiter, [limit_of("key", "requests", 1, HOUR, 1)])
        assert not decides_locally(limiter)
        delays_s[0] = 3 * TIMEOUT_S
        await assert_grants_its_share(limiter)
        delays_s[0] = 0.0
        await recovered(limiter)
        await assert_nothing_is_held(limiter)
        await limiter.close()


async def test_absent_from_the_start(server: RedisServer):
    server.kill()
    limiter = Limiter(RedisStore(server.url), gateways=2)
    await limiter.heartbeat()
    await assert_grants_its_share(limiter)
    server.start()
    await recovered(limiter)
    assert await ask(limiter, ALL)
    await limiter.close()


async def test_no_password_in_what_is_logged(server: RedisServer, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    with server.client() as client:
        client.config_set("requirepass", "another")
    limiter = Limiter(RedisStore(f"redis://:hunter2@127.0.0.1:{server.port}"))
    await limiter.heartbeat()
    assert await ask(limiter, ALL)
    assert "Redis is unavailable" in caplog.text
    assert "hunter2" not in caplog.text
    await limiter.close()


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyError("bug"), GeneratorExit()])
async def test_a_connection_whose_task_ends_is_restarted(server, error, monkeypatch):
    """Whatever ended it: nobody waits for it for ever, and Redis decides again soon after."""
    restarts = []
    limiter = Limiter(RedisStore(server.url, lambda: restarts.append(1)), gateways=2)
    await limiter.heartbeat()
    connection = limiter.redis._connection

    async def fails(calls):
        raise error

    monkeypatch.setattr(connection, "_send", fails)
    async with limiter.admit(checks_of([AT_ONCE], SUBJECT)) as admission:
        assert admission.lease == ""  # this process decided
    monkeypatch.undo()
    deadline = time.monotonic() + RECOVERY_S
    while not connection.is_healthy and time.monotonic() < deadline:  # noqa: ASYNC110 - no event for it
        await asyncio.sleep(0.05)
    async with limiter.admit(checks_of([AT_ONCE], SUBJECT)) as admission:
        assert admission.lease
    assert len(restarts) >= (0 if isinstance(error, KeyError) else 1)
    await limiter.close()
