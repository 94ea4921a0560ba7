"""The pool follows its list: who stays keeps its connection, who goes ends what it has."""

import asyncio

import pytest

from gateway.errors import NoCapacity
from gateway.replicas import ReplicaPool


class Line:
    """A connection that knows whether it was closed."""

    def __init__(self, address: str) -> None:
        self.address, self.closed = address, False

    async def close(self) -> None:
        self.closed = True


async def test_the_least_busy_gets_the_next_and_a_full_pool_refuses():
    pool = ReplicaPool(Line, 1)
    pool.adopt(["a:1", "b:1"])
    with pool.permit() as first, pool.permit() as second:
        assert {first.address, second.address} == {"a:1", "b:1"}
        with pytest.raises(NoCapacity):
            pool.permit()
    assert [replica.inflight for replica in pool.replicas] == [0, 0]


async def test_another_list_is_followed_without_breaking_what_is_under_way():
    pool = ReplicaPool(Line, 8)
    pool.adopt(["a:1", "b:1"])
    kept = pool.replicas[1].upstream
    with pool.replicas[0] as leaving:
        pool.adopt(["b:1", "c:1"])
        assert [replica.upstream.address for replica in pool.replicas] == ["b:1", "c:1"]
        assert pool.replicas[0].upstream is kept
        await asyncio.sleep(0.05)
        assert not leaving.closed
    await asyncio.sleep(0.05)
    assert leaving.closed and not kept.closed
    await pool.close()
    assert kept.closed
