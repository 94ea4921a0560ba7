"""Limits in a real, healthy Redis."""

import asyncio
import contextlib
import random
import time

import pytest
from redis.crc import key_slot

from gateway.errors import NoCapacity, QuotaExceeded
from gateway.limits.limit import Check, Limit, Subject, checks_of
from gateway.limits.limiter import Limiter, LimitReached
from gateway.limits.local import LocalStore
from gateway.limits.redis import connection as redis_connection
from gateway.limits.redis import store as redis_store
from gateway.limits.redis.store import RedisStore
from tests.gateway.limits.made import limit_of
from tests.gateway.limits.redis_server import RedisServer

HOUR, DAY = 3600, 86_400  # slow enough that nothing comes back during a test
RPH = limit_of("key", "requests", 3, HOUR)
AT_ONCE = limit_of("tenant", "concurrency", 2)
TOKENS = limit_of("model", "tokens", 600, DAY)
ALL = [RPH, AT_ONCE, TOKENS]
SUBJECT = Subject("acme", "k1", "chat")
LEASE_US = 1_000_000  # where it is to run out


@pytest.fixture(autouse=True)
def long_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here does not depend on how busy the machine is."""
    for module in (redis_connection, redis_store):
        monkeypatch.setattr(module, "TIMEOUT_S", 5.0)


async def remaining(limiter: Limiter, limit: Limit) -> int:
    """How many more units are admitted, requested one by one and held until the end."""
    async with contextlib.AsyncExitStack() as stack:
        for count in range(1000):
            try:
                await stack.enter_async_context(limiter.admit(checks_of([limit], SUBJECT, 1)))
            except QuotaExceeded:
                return count
    raise AssertionError("no end to it")


async def refused(limiter: Limiter, limits: list[Limit], tokens: float = 0) -> LimitReached:
    with pytest.raises(LimitReached) as caught:
        async with limiter.admit(checks_of(limits, SUBJECT, tokens)):
            pass
    return caught.value


async def test_an_admission_is_one_call_all_or_nothing(limiter: Limiter, server: RedisServer):
    with server.client() as client:
        before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        async with limiter.admit(checks_of(ALL, SUBJECT, tokens=400)) as admission:
            assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == before + 1
            assert dict(admission.headers())[b"ratelimit"].startswith(b'"key-requests-3600s";r=2;')
            assert "model limit of 600 tokens" in (await refused(limiter, ALL, 400)).message
            async with limiter.admit(checks_of(ALL, SUBJECT, tokens=100)):
                error = await refused(limiter, [AT_ONCE])
                assert error.retry_after_s == 1
        assert await remaining(limiter, RPH) == 1


async def test_every_key_expires_and_is_in_its_tenants_slot(limiter: Limiter, server: RedisServer):
    with server.client() as client:
        async with limiter.admit(checks_of(ALL, SUBJECT, tokens=400)):
            keys = [key for key in client.scan_iter() if "acme" in key]
            assert len(keys) == 4
            assert all(client.ttl(key) > 0 for key in client.scan_iter())
            assert {key_slot(key.encode()) for key in keys} == {key_slot(b"acme")}


@pytest.mark.parametrize(
    ("settled", "error", "expected"),
    [(100, None, 500), (600, None, 0), (None, None, 200), (None, NoCapacity("full"), 600)],
)
async def test_tokens_are_reserved_then_settled(limiter: Limiter, settled, error, expected):
    with contextlib.suppress(NoCapacity):
        async with limiter.admit(checks_of([TOKENS], SUBJECT, tokens=400)) as admission:
            if settled is not None:
                admission.settle(settled)
            if error:
                raise error
    assert await remaining(limiter, TOKENS) == expected


async def test_it_decides_as_the_store_in_memory_does(limiter: Limiter):
    chance = random.Random(5)  # noqa: S311
    local = LocalStore()
    limits = [limit_of("key", "requests", 40, HOUR), *ALL[1:]]
    admissions = []
    assert limiter.redis
    for _ in range(300):
        checks = checks_of(
            limits, SUBJECT, tokens=chance.randint(0, 300), weight=chance.randint(1, 3)
        )
        decision = await limiter.redis.admit(checks)
        assert decision
        redis_outcome, lease = decision
        local_outcome = local.admit(checks, 1000.0)
        assert redis_outcome.admitted == local_outcome.admitted
        assert redis_outcome.used == pytest.approx(local_outcome.used, abs=0.5)
        if local_outcome.admitted:
            admissions.append((lease, checks))
        if admissions and chance.random() < 0.6:
            lease, checks = admissions.pop(chance.randrange(len(admissions)))
            tokens = chance.choice([None, 0, 10, 200])
            limiter.redis.settle(lease, tokens)
            local.settle(checks, tokens, 1000.0)


async def test_what_a_dead_gateway_held_comes_back(
    limiter: Limiter, server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(redis_store, "_LEASE_US", LEASE_US)
    dead = Limiter(RedisStore(server.url))
    await dead.heartbeat()
    await dead.admit(checks_of(ALL, SUBJECT, tokens=600)).__aenter__()
    assert await remaining(limiter, AT_ONCE) == 1
    await refused(limiter, [TOKENS], 1)
    await asyncio.sleep(LEASE_US / 1e6 + 0.05)
    assert await remaining(limiter, AT_ONCE) == 2
    async with limiter.admit(checks_of([TOKENS], SUBJECT, tokens=600)):
        pass
    await dead.close()


async def test_a_long_request_keeps_its_place(limiter: Limiter, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(redis_store, "_LEASE_US", LEASE_US)
    async with limiter.admit(checks_of(ALL, SUBJECT, tokens=500)) as admission:
        for _ in range(6):  # longer than the lease
            await asyncio.sleep(LEASE_US / 4e6)
            await limiter.heartbeat()
        assert await remaining(limiter, AT_ONCE) == 1
        admission.settle(600)
    await refused(limiter, [TOKENS], 1)
    assert await remaining(limiter, AT_ONCE) == 2


async def test_tokens_used_after_the_lease_ran_out_are_owed_in_full(
    limiter: Limiter, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(redis_store, "_LEASE_US", 100_000)
    async with limiter.admit(checks_of([TOKENS], SUBJECT, tokens=300)) as admission:
        await asyncio.sleep(0.15)
        monkeypatch.setattr(redis_store, "_LEASE_US", 10_000_000)
        async with limiter.admit(checks_of([TOKENS], SUBJECT, tokens=0)):
            pass  # this one finds the reservation expired
        admission.settle(500)
    assert await remaining(limiter, TOKENS) == 100


async def test_a_reservation_that_redis_forgot_is_not_given_back(
    limiter: Limiter, server: RedisServer
):
    async with limiter.admit(checks_of([TOKENS], SUBJECT, tokens=500)) as admission:
        with server.client() as client:
            client.flushall()
        await limiter.heartbeat()
        admission.settle(100)
    assert await remaining(limiter, TOKENS) == 500


async def test_cancelled_admissions_leave_nothing_behind(limiter: Limiter):
    """Neither a slot that nobody holds nor a reply for somebody else (redis-py#2624)."""
    chance = random.Random(7)  # noqa: S311

    async def ask(number: int) -> None:
        limit = limit_of("key", "concurrency", 10_000 + number)
        wide = limit_of("tenant", "concurrency", 10_000)
        checks = [Check(limit, f"{{acme}}:{number}"), *checks_of([wide], SUBJECT)]
        async with limiter.admit(checks) as admission:
            header = dict(admission.headers())[b"ratelimit"].split(b",")[0]
            assert header == b'"key-concurrency";r=%d' % (10_000 + number - 1)
            await asyncio.sleep(chance.random() / 500)

    for _ in range(20):
        tasks = [asyncio.create_task(ask(number)) for number in range(50)]
        for task in tasks:
            await asyncio.sleep(chance.random() / 5000)
            if chance.random() < 0.5:
                task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError)
    assert await remaining(limiter, AT_ONCE) == 2


async def test_no_name_reaches_anothers_count(limiter: Limiter):
    """As names of keys in Redis; a token's subject may be any text."""
    tokens = limit_of("key", "tokens", 600, HOUR)
    for name in ("bob", "bob:held", "held:bob", "{acme}", "a b\r\nFLUSHALL", "é", "\ud800"):
        async with limiter.admit(
            checks_of([tokens, RPH], Subject("acme", name, name), 600)
        ) as admission:
            assert admission.lease  # Redis decided


async def test_gateways_are_counted(limiter: Limiter, server: RedisServer):
    others = [Limiter(RedisStore(server.url)) for _ in range(3)]
    for other in others:
        await other.heartbeat()
    await limiter.heartbeat()
    assert limiter.local.share == 1 / 4
    for other in others:
        await other.close()


async def test_a_redis_that_was_set_back_owes_nobody_the_hour(
    limiter: Limiter, server: RedisServer
):
    """Also one that another server with an earlier clock has taken over from."""
    async with limiter.admit(checks_of(ALL, SUBJECT, tokens=400)) as admission:
        admission.settle(400)
    # And one that is used up; a refusal writes no meter of its own.
    used_up, soon = Subject("acme", "k2", "chat"), limit_of("key", "requests", 3, 12)
    for _ in range(3):
        async with limiter.admit(checks_of([soon], used_up, 1)):
            pass
    hour_us = HOUR * 1_000_000
    with server.client() as client:
        for key in client.scan_iter("{acme}*"):
            empty, written = client.get(key).split(":")
            client.set(key, f"{float(empty) + hour_us:.3f}:{int(written) + hour_us}")
    with pytest.raises(LimitReached):
        async with limiter.admit(checks_of([soon], used_up, 1)):
            pass
    assert await remaining(limiter, RPH) == 2
    assert await remaining(limiter, TOKENS) == 200
    await asyncio.sleep(4.2)  # one of three in twelve seconds
    async with limiter.admit(checks_of([soon], used_up, 1)):
        pass


async def test_leases_that_were_written_before_the_clock_was_set_back_expire(
    limiter: Limiter, server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(redis_store, "_LEASE_US", LEASE_US)
    dead = Limiter(RedisStore(server.url))
    await dead.heartbeat()
    await dead.admit(checks_of([AT_ONCE], SUBJECT, 1)).__aenter__()
    with server.client() as client:
        (key,) = list(client.scan_iter("held:*"))
        for member, score in client.zrange(key, 0, -1, withscores=True):
            client.zadd(key, {member: score + HOUR * 1_000_000})
    assert await remaining(limiter, AT_ONCE) == 1
    await asyncio.sleep(LEASE_US / 1e6 + 0.05)
    assert await remaining(limiter, AT_ONCE) == 2
    await dead.close()


async def test_leases_are_sorted_by_the_clock_of_redis(
    limiter: Limiter, server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    fast = Limiter(RedisStore(server.url))
    now_ns = time.time_ns
    await limiter.heartbeat()
    async with limiter.admit(checks_of([AT_ONCE], SUBJECT, 1)):
        pass
    monkeypatch.setattr(redis_store.time, "time_ns", lambda: now_ns() + HOUR * 10**9)
    await fast.heartbeat()
    async with fast.admit(checks_of([AT_ONCE], SUBJECT, 1)):
        pass  # now it knows how far its clock is ahead
    assert fast.redis
    first = fast.redis.lease()
    monkeypatch.setattr(redis_store.time, "time_ns", now_ns)
    await asyncio.sleep(0.2)
    assert limiter.redis
    assert first < limiter.redis.lease()
    await fast.close()
