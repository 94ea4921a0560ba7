"""Responses in a real Redis that works, is frozen, slow, full, dead or back."""

import asyncio
import time

import pytest
import pytest_asyncio

from gateway.limits.redis import connection
from gateway.response_cache import redis_store
from gateway.response_cache.cache import CachedResponse, ResponseCache
from gateway.response_cache.key import CacheScope
from gateway.response_cache.redis_store import MOST_BYTES, RedisStore
from gateway.settings import Settings
from tests.gateway.limits.redis_server import RedisServer

KEY, OTHER = b"k" * 32, b"o" * 32
HANG_S = 10.0
SCOPE = CacheScope("default", "m", "1", "abc")


@pytest.fixture
def server():
    with RedisServer() as running:
        yield running


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A Redis that answers late because this machine is busy is not the one that ails."""
    monkeypatch.setattr(connection, "TIMEOUT_S", 5.0)
    monkeypatch.setattr(redis_store, "WAIT_S", 5.0)


@pytest_asyncio.fixture
async def store(server):
    opened = RedisStore(server.url)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


async def _until(condition, what: str) -> None:
    deadline = time.monotonic() + HANG_S
    while not await condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def _data(store, key: bytes) -> bytes | None:
    stored = await store.get(key)
    return stored.data if stored else None


async def _has(store, key: bytes, response: bytes) -> bool:
    store.put(key, response, 60)
    return await _data(store, key) == response


async def test_what_is_stored_is_there_for_its_time(server, store):
    response = bytes(range(256))
    await _until(lambda: _has(store, KEY, response), "it is stored")
    assert await store.get(OTHER) is None
    with server.client() as client:
        (name,) = client.keys("*")
        assert 0 < client.pttl(name) <= 60_000


async def test_what_redis_has_gets_no_older_in_memory(server, store):
    """A hit in Redis is kept in memory for the rest of its time there, not for another one."""
    await _until(lambda: _has(store, KEY, b"x"), "it is stored")
    with server.client() as client:
        client.pexpire(redis_store._name(KEY), 20_000)
        stored = await store.get(KEY)
        assert stored.data == b"x" and 0 < stored.remaining_s <= 20
        client.persist(redis_store._name(KEY))
    assert (await store.get(KEY)).remaining_s < 0  # nobody knows how old it is
    settings = Settings(cache_mib=1, cache_redis_url=server.url)
    for expire_ms, is_kept in ((2000, True), (0, False)):
        cache = ResponseCache(settings)
        await cache.open()
        with server.client() as client:
            if expire_ms:
                client.pexpire(redis_store._name(KEY), expire_ms)
            else:
                client.set(redis_store._name(KEY), b"tgr1" + KEY + b"x")
        known = {}
        try:
            assert await cache._from_redis(SCOPE, [KEY], [0], known) == []
        finally:
            await cache.close()
        assert known == {0: CachedResponse("1", b"x")}
        assert cache.memory.get(KEY) == (b"x" if is_kept else None)
        await asyncio.sleep(expire_ms / 1000)
        assert cache.memory.get(KEY) is None


async def test_a_large_response_is_not_stored(server, store):
    store.put(KEY, bytes(MOST_BYTES + 1), 60)
    await _until(lambda: _has(store, OTHER, b"x"), "a small one is stored")
    assert await store.get(KEY) is None


async def test_a_value_under_the_wrong_key_is_a_miss(server, store):
    await _until(lambda: _has(store, KEY, b"mine"), "it is stored")
    with server.client() as client:
        (name,) = client.keys("*")
        client.copy(name, redis_store._name(OTHER))
        client.set(redis_store._name(b"z" * 32), "not ours")
    assert await store.get(OTHER) is None
    assert await store.get(b"z" * 32) is None


async def test_a_full_redis_refuses_without_harm(server, store):
    await _until(lambda: _has(store, KEY, b"x"), "it is stored")
    with server.client() as client:
        client.config_set("maxmemory", 1)
    store.put(OTHER, b"y", 60)
    assert await store.get(OTHER) is None

    async def is_there() -> bool:
        return await _data(store, KEY) == b"x"

    await _until(is_there, "what was stored before is there")
    assert store._connection.is_healthy


async def test_a_frozen_or_dead_redis_is_a_miss_at_once_and_used_again_when_it_is_back(
    server, store, monkeypatch
):
    await _until(lambda: _has(store, KEY, b"x"), "it is stored")
    wait_s = 0.2
    monkeypatch.setattr(connection, "TIMEOUT_S", wait_s)
    monkeypatch.setattr(redis_store, "WAIT_S", wait_s)
    for ails, recovers in ((server.freeze, server.thaw), (server.kill, server.start)):
        ails()
        started = time.perf_counter()
        replies = await asyncio.gather(*(store.get(KEY) for _ in range(50)))
        took_s = time.perf_counter() - started
        for _ in range(50):
            store.put(OTHER, b"y", 60)
            assert await _data(store, KEY) in (None, b"x")
        whole_s = time.perf_counter() - started
        assert not any(replies)
        # All of them together waited once, and those after them hardly: not each.
        assert took_s < 25 * wait_s and whole_s - took_s < 25 * wait_s
        recovers()
        await _until(lambda: _has(store, KEY, b"x"), "it is used again")


async def test_one_who_is_cancelled_leaves_no_reply_to_another(store):
    """As the clients did that handed one caller's data to the next one (redis-py #2624)."""
    await _until(lambda: _has(store, KEY, b"mine"), "it is stored")
    await _until(lambda: _has(store, OTHER, b"another's"), "it is stored")
    for number in range(200):
        task = asyncio.create_task(store.get(OTHER))
        await asyncio.sleep(0 if number % 2 else 0.0002)
        task.cancel()
        assert await _data(store, KEY) in (b"mine", None)
