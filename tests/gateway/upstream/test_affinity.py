"""Where a text to continue goes: pure choices, and the pool that follows them."""

import random
from types import SimpleNamespace

import orjson
import pytest

from gateway.upstream.affinity import (
    BLOCK_BYTES,
    DEFAULT_TOKENS,
    MOST_BLOCKS,
    PrefixAffinity,
    text_work,
    text_work_of,
)
from gateway.upstream.balancing import Health, ReplicaState, choose
from gateway.upstream.replicas import ReplicaPool
from tests.gateway.upstream.test_replicas import Connection

BLOCK = b"x" * BLOCK_BYTES
IDLE = {"a:1": 0, "b:1": 0, "c:1": 0}


def test_a_text_has_a_hash_for_each_block_of_its_beginning():
    short, long = text_work("t", b"hello", 10), text_work("t", 100 * BLOCK, 10)
    assert (short.tokens, short.blocks) == (11, ())
    assert len(long.blocks) == len(set(long.blocks)) == MOST_BLOCKS
    longer = text_work("t", 3 * BLOCK + b"and more", 10)
    assert longer.blocks == long.blocks[:3]
    assert text_work("t", b"y" + 3 * BLOCK, 10).blocks[0] != long.blocks[0]


def test_what_a_tenant_sent_says_nothing_to_another():
    assert not set(text_work("t", 3 * BLOCK, 1).blocks) & set(text_work("u", 3 * BLOCK, 1).blocks)


def test_the_next_turn_goes_where_the_last_one_was():
    affinity = PrefixAffinity()
    first = text_work("t", BLOCK + b"a" * BLOCK_BYTES, 10)
    affinity.sent("llm", first, "c:1")
    following = text_work("t", BLOCK + b"a" * BLOCK_BYTES + b"b" * BLOCK_BYTES, 10)
    assert affinity.home("llm", following, IDLE) == "c:1"
    affinity.sent("llm", following, "b:1")  # it had to go elsewhere, and is there from now on
    assert affinity.home("llm", following, IDLE) == "b:1"
    assert affinity.home("llm", first, IDLE) == "b:1"


def test_what_is_new_goes_to_one_place_from_every_gateway():
    homes = []
    for number in range(60):
        work = text_work("t", str(number).encode() * BLOCK_BYTES, 10)
        places = {PrefixAffinity().home("llm", work, IDLE) for _ in range(3)}
        assert len(places) == 1
        homes += places
    assert all(homes.count(address) > 8 for address in IDLE)


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ({"a:1": 0, "b:1": 0}, "a:1"),
        ({"a:1": 100, "b:1": 0}, "a:1"),  # 125 is 1.25 times the mean of 200
        ({"a:1": 200, "b:1": 0}, ""),  # of 300 it would be 187
        ({"a:1": 1000, "b:1": 1000}, "a:1"),
        ({"b:1": 0, "c:1": 0}, "b:1, c:1"),  # its replica is gone
    ],
)
def test_no_replica_gets_much_more_than_its_share(loads, expected):
    affinity = PrefixAffinity()
    work = text_work("t", BLOCK, 0)._replace(tokens=100)
    affinity.sent("llm", work, "a:1")
    home = affinity.home("llm", work, loads)
    assert home == expected or (home and home in expected.split(", "))


def test_short_texts_and_single_replicas_need_none():
    assert PrefixAffinity().home("llm", text_work("t", b"hello", 10), IDLE) == ""
    assert PrefixAffinity().home("llm", text_work("t", BLOCK, 10), {"a:1": 0}) == ""


def test_only_so_many_are_remembered():
    affinity = PrefixAffinity(most_known=4)
    works = [text_work("t", bytes([number]) * BLOCK_BYTES, 1) for number in range(6)]
    for work in works:
        affinity.sent("llm", work, "gone:1")
    assert len(affinity._homes) == 4


def test_fewer_tokens_under_way_are_less_work_than_fewer_requests():
    draw = random.Random(0).random  # noqa: S311 - repeatable, nothing secret
    states = [ReplicaState(Health.UP, 1, load=40.0), ReplicaState(Health.UP, 3, load=0.3)]
    assert {choose(states, 8, draw) for _ in range(50)} == {1}


@pytest.mark.parametrize(
    ("sampling", "tokens"),
    [
        ({"max_tokens": 50}, 50),
        ({}, DEFAULT_TOKENS),
        ({"max_tokens": -1}, DEFAULT_TOKENS),
        ({"max_tokens": True}, DEFAULT_TOKENS),
        ({"max_tokens": 10**12}, DEFAULT_TOKENS),
        ([], DEFAULT_TOKENS),
        (None, DEFAULT_TOKENS),
    ],
)
def test_a_request_says_how_much_it_wants(sampling, tokens):
    def element(data: bytes) -> memoryview:
        return memoryview(len(data).to_bytes(4, "little") + data)

    names = ["stream", "text_input", "sampling_parameters"]
    raws = [memoryview(b"\1"), element(b"x" * 40), element(orjson.dumps(sampling))]
    inputs = [SimpleNamespace(name=name) for name in names]
    work = text_work_of("t", inputs, raws)
    assert work is not None
    assert work.tokens == 10 + tokens
    assert text_work_of("t", inputs[:1], raws[:1]) is None
    assert text_work_of("t", inputs, []) is None  # typed contents are not read


async def test_the_pool_counts_tokens_while_they_are_under_way():
    pool = ReplicaPool(Connection, 8)
    pool.apply(["a:1", "b:1"])
    work = text_work("t", 4 * BLOCK, 100)
    permits = [pool.permit("llm", work=work) for _ in range(3)]
    home = permits[0].replica
    assert {permit.replica for permit in permits} == {home}
    with permits[0], permits[1]:
        assert home.tokens == 2 * work.tokens
        assert pool.permit("llm", work=work).replica is not home  # it has its share
    assert home.tokens == 0
