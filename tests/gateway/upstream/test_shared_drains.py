"""Drains in a real Redis, as two gateways see them."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from gateway.upstream import shared_drains
from gateway.upstream.drains import LONGEST_S
from gateway.upstream.shared_drains import SharedDrains
from tests.gateway.limits.redis_server import RedisServer

LISTED = frozenset(("a:1", "[2001:db8::1]:8001", "127.0.0.1:8001"))


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest_asyncio.fixture
async def gateways(server) -> AsyncIterator[tuple[SharedDrains, SharedDrains]]:
    both = SharedDrains(server.url), SharedDrains(server.url)
    for gateway in both:
        await _reach(gateway)
    yield both
    for gateway in both:
        await gateway.close()


async def _reach(gateway: SharedDrains) -> None:
    """A busy machine may need more than the one attempt of ``open``."""
    for _ in range(100):
        await gateway.open()
        if await gateway.lift("nobody:1"):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("Redis cannot be reached")


async def _becomes(gateway: SharedDrains, expected: set[str]) -> None:
    """As the loop of a gateway does, look until it is so."""
    for _ in range(100):
        current = await gateway.current(LISTED)
        if current == expected:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{current} are drained, and not {expected}")


async def _change(change, *arguments) -> None:
    """On a busy machine Redis may be late, and the operator tries again."""
    for _ in range(100):
        if await change(*arguments):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("Redis did not take it")


async def test_what_one_is_told_the_other_follows_and_either_lifts(gateways):
    first, second = gateways
    await _change(first.set, "a:1", 600)
    await _change(first.set, "[2001:db8::1]:8001", 600)
    await _change(first.set, "not.listed:1", 600)
    await _becomes(second, {"a:1", "[2001:db8::1]:8001"})
    await _change(second.lift, "a:1")
    await _becomes(first, {"[2001:db8::1]:8001"})


async def test_it_ends_by_itself_and_can_be_set_again(gateways):
    first, second = gateways
    await _change(first.set, "a:1", 600)
    await _change(second.set, "a:1", 0.3)  # the last word counts
    await _becomes(first, set())
    await _change(second.set, "a:1", 600)
    await _becomes(first, {"a:1"})


async def test_a_loopback_address_is_another_replica_elsewhere(gateways, monkeypatch):
    first, second = gateways
    await _change(first.set, "127.0.0.1:8001", 600)
    await _becomes(second, {"127.0.0.1:8001"})
    monkeypatch.setattr(shared_drains, "_place", lambda: "another container")
    await _becomes(second, set())
    assert shared_drains._name("localhost:1") == "localhost:1 of another container"
    assert shared_drains._name("[::1]:1") == "[::1]:1 of another container"
    assert shared_drains._name("triton.example:1") == "triton.example:1"


async def test_while_redis_is_away_what_was_read_goes_on_until_its_end(gateways, server):
    first, second = gateways
    await _change(first.set, "a:1", 600)
    await _becomes(second, {"a:1"})
    server.kill()
    assert await second.current(LISTED) == {"a:1"}
    assert not await first.set("a:1", 600)
    assert not await first.lift("a:1")
    second._ends = dict.fromkeys(second._ends, 0.0)  # their time is over
    assert await second.current(LISTED) == frozenset()


async def test_a_redis_that_forgets_lifts_nothing(gateways, server):
    """Either gateway writes what it knows again, and what was lifted meanwhile stays so."""
    first, second = gateways
    await _change(first.set, "a:1", 600)
    await _change(first.set, "[2001:db8::1]:8001", 600)
    for gateway in gateways:
        await _becomes(gateway, {"a:1", "[2001:db8::1]:8001"})
    server.kill()
    server.start()
    await _becomes(first, {"a:1", "[2001:db8::1]:8001"})
    await _change(first.lift, "a:1")
    await _becomes(second, {"[2001:db8::1]:8001"})  # which knew of both
    server.client().flushall()
    await _change(second.lift, "[2001:db8::1]:8001")  # the first that it hears of the loss
    await _becomes(second, set())
    await _becomes(first, set())
    await _change(first.set, "a:1", 600)  # again
    await _becomes(second, {"a:1"})


async def test_a_redis_with_older_data_lifts_nothing(gateways, server):
    """What a snapshot or a replica lacks that had not seen the last changes."""
    first, second = gateways
    await _change(first.set, "a:1", 600)
    older = server.client().zrange("tidegate:drains", 0, -1, withscores=True)
    await _change(first.set, "[2001:db8::1]:8001", 600)
    await _becomes(second, {"a:1", "[2001:db8::1]:8001"})
    server.client().delete("tidegate:drains")
    server.client().zadd("tidegate:drains", dict(older))
    for gateway in (second, first):
        await _becomes(gateway, {"a:1", "[2001:db8::1]:8001"})


async def test_a_drain_that_is_over_is_not_set_again(gateways, server):
    first, second = gateways
    await _change(first.set, "a:1", 600)
    await _becomes(second, {"a:1"})
    second._ends = dict.fromkeys(second._ends, 0.0)
    server.client().flushall()
    assert await second.current(LISTED) == frozenset()


async def test_a_redis_whose_clock_was_set_back_makes_no_drain_longer_than_one_may_be(
    gateways, server
):
    first, _ = gateways
    now_s, _ = server.client().time()
    server.client().zadd("tidegate:drains", {"a:1": (now_s + LONGEST_S + 60) * 1e6})
    await _becomes(first, set())
    assert "a:1" not in server.client().zrange("tidegate:drains", 0, -1)
