"""Drained replicas: what the files say, and what the pool makes of them."""

import os
import time

import pytest

from gateway.errors import NoCapacity
from gateway.upstream.balancing import Health
from gateway.upstream.drains import FOLDER, LONGEST_S, Drains, boot_id
from gateway.upstream.outliers import LEAST_WEIGHT
from gateway.upstream.replicas import ReplicaPool
from tests.gateway.upstream.test_replicas import Connection


def test_a_drain_is_followed_lifted_and_ends_by_itself(tmp_path):
    drains, others = Drains(tmp_path), Drains(tmp_path)
    assert others.current() == frozenset()
    drains.set("a:1", 30)
    drains.set("[::1]:8001", 0.05)
    assert others.current() >= {"a:1"}
    time.sleep(0.06)
    assert others.current() == {"a:1"}
    drains.lift("a:1")
    drains.lift("a:1")
    assert others.current() == frozenset()


@pytest.mark.parametrize(
    "text",
    ["", "soon", f"{boot_id()} nan", f"{boot_id()} {time.monotonic() + LONGEST_S + 3600}"],
    ids=["empty", "a word", "nan", "too long"],  # the same in each worker of a run
)
def test_a_file_that_makes_no_sense_drains_nothing(tmp_path, text):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "a:1").write_text(text)
    assert Drains(tmp_path).current() == frozenset()


def test_a_drain_of_anotherboot_id_or_machine_drains_nothing(tmp_path):
    drains, path = Drains(tmp_path), tmp_path / FOLDER / "a:1"
    drains.set("a:1", 30)
    boot, end = path.read_text().split()
    assert drains.current() == {"a:1"}
    for text in (f"00000000-0000-4000-8000-000000000000 {end}", end):  # or of an older gateway
        path.write_text(text)
        assert drains.current() == frozenset()
    path.write_text(f"{boot} {end}")
    assert drains.current() == {"a:1"}


def test_what_ended_long_ago_is_removed(tmp_path):
    drains, path = Drains(tmp_path), tmp_path / FOLDER / "a:1"
    drains.set("a:1", 0.0)
    drains.set("b:1", 30)
    assert drains.current() == {"b:1"}
    assert path.exists()  # it may just be set again
    long_ago = time.time() - LONGEST_S - 1
    for address in ("a:1", "b:1"):
        os.utime(tmp_path / FOLDER / address, (long_ago, long_ago))
    assert drains.current() == {"b:1"}
    assert [left.name for left in path.parent.iterdir()] == ["b:1"]


@pytest.fixture
async def pool():
    pool = ReplicaPool(Connection, 2)
    pool.apply(["a:1/2", "b:1"])
    for replica in pool.replicas:
        replica.index_read({"m": ("1",)})
    return pool


def _chosen(pool, times=40):
    return {pool.permit("m").replica.address for _ in range(times)}


async def test_a_drained_one_gets_nothing_new_and_starts_slowly_afterwards(pool):
    first, second = pool.replicas
    assert pool.drain({"a:1"}) == []
    assert _chosen(pool) == {"b:1"}
    assert pool.permit("m", at=first.upstream).replica is second
    assert pool.home(7, "m", "", begun_at="", starts=True) is second
    assert pool.home(7, "m", "", begun_at="a:1", starts=False) is first
    assert first.reason == "is drained by an operator"
    assert pool.drain(set()) == [first]
    assert first.state("m", "", time.monotonic()).weight == LEAST_WEIGHT
    assert _chosen(pool, 400) == {"a:1/2", "b:1"}


async def test_it_takes_requests_all_the_same_if_no_other_can(pool):
    pool.drain({"a:1"})
    pool.replicas[1].upstream.connection = Health.DOWN
    assert _chosen(pool) == {"a:1/2"}


async def test_it_takes_requests_all_the_same_if_the_others_are_wrong(pool):
    first, second = pool.replicas
    pool.drain({"a:1"})
    second.probes["m"] = "gives a wrong answer"
    assert _chosen(pool) == {"a:1/2"}
    assert pool.permit("m", at=first.upstream).replica is first
    second.probes["m"] = ""
    assert _chosen(pool) == {"b:1"}


async def test_what_nobody_waits_for_goes_where_requests_go(pool):
    first, second = pool.replicas
    with second.permit("m"), second.permit("m"):
        assert pool.unpermitted("m") is first.upstream
        pool.drain({"a:1"})
        assert pool.unpermitted("m") is second.upstream
        second.upstream.connection = Health.DOWN
        assert pool.unpermitted("m") is first.upstream
        second.upstream.connection = Health.UP
        pool.drain(set())
        first.probes["m"] = "gives a wrong answer"
        assert pool.unpermitted("m") is second.upstream
        first.probes["m"] = ""
        first.record("m").eject(time.monotonic())
        assert pool.unpermitted("m") is second.upstream
    for replica in pool.replicas:
        replica.upstream.connection = Health.UNKNOWN
    with pytest.raises(NoCapacity):
        pool.unpermitted("m")


async def test_what_others_serve_is_dispensable(pool):
    first, second = pool.replicas
    assert pool.is_dispensable(first)
    second.probes["m"] = "gives a wrong answer"
    assert not pool.is_dispensable(first)
    second.probes["m"] = ""
    second.record("m").eject(time.monotonic())
    assert not pool.is_dispensable(first)
    second.record("m").trials_left = 0
    first.index_read({"m": ("1",), "own": ("1",)})
    assert not pool.is_dispensable(first)
    second.index_read({"m": ("1",), "own": ("1",)})
    assert pool.is_dispensable(first)
    pool.drain({"b:1"})
    assert not pool.is_dispensable(first)
    pool.drain(set())
    second.upstream.connection = Health.UNKNOWN
    assert not pool.is_dispensable(first)
