"""Where a text to continue goes: pure choices, and the pool that follows them."""

import random
import time
from contextlib import ExitStack
from types import SimpleNamespace

import orjson
import pytest

from gateway.errors import NoCapacity
from gateway.upstream.affinity import (
    BLOCK_BYTES,
    DEFAULT_TOKENS,
    MOST_BLOCKS,
    MOST_SEQUENCES,
    MOST_TOKENS,
    PrefixAffinity,
    TextWork,
    text_work,
    text_work_of,
)
from gateway.upstream.balancing import Health, ReplicaState, choose
from gateway.upstream.replicas import Replica, ReplicaPool
from tests.gateway.upstream.test_replicas import Connection

BLOCK = b"x" * BLOCK_BYTES
IDLE = {"a:1": 0.0, "b:1": 0.0, "c:1": 0.0}


def test_a_text_has_a_hash_for_each_block_of_its_beginning():
    short, long = text_work("t", b"hello", 10), text_work("t", 100 * BLOCK, 10)
    assert (short.tokens, short.blocks) == (11, ())
    assert len(long.blocks) == len(set(long.blocks)) == MOST_BLOCKS
    longer = text_work("t", 3 * BLOCK + b"and more", 10)
    assert longer.blocks == long.blocks[:3]
    assert text_work("t", b"y" + 3 * BLOCK, 10).blocks[0] != long.blocks[0]


def test_a_prompt_of_token_ids_counts_its_tokens():
    def work(**raws):
        inputs = [SimpleNamespace(name=name) for name in raws]
        return text_work_of("t", inputs, list(raws.values()))

    sampling = b"\0\0\0\0" + orjson.dumps({"max_tokens": 5})
    ids = work(prompt_token_ids=bytes(8 * 70), sampling_parameters=sampling, stream=b"\1")
    assert (ids.tokens, len(ids.blocks), ids.is_stream) == (75, 1, True)
    assert not work(text_input=b"\0\0\0\0hello", stream=b"\0").is_stream
    assert work(tokenizer_request=b"\0\0\0\0{}") is None


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


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ({"a:1": 0.0, "b:1": 0.0}, "a:1"),
        ({"a:1": 1.0, "b:1": 0.0}, "a:1"),  # 1.25 is 1.25 times the mean of 2
        ({"a:1": 2.0, "b:1": 0.0}, ""),  # of 3 it would be 1.9
        ({"a:1": 10.0, "b:1": 10.0}, "a:1"),
        ({"b:1": 0.0, "c:1": 0.0}, ""),  # its replica is gone
    ],
)
def test_no_replica_gets_much_more_than_its_share(loads, expected):
    affinity = PrefixAffinity()
    work = text_work("t", BLOCK, 10)
    affinity.sent("llm", work, "a:1")
    assert affinity.home("llm", work, loads) == expected


def test_what_is_new_and_what_is_short_may_go_anywhere():
    affinity = PrefixAffinity()
    assert affinity.home("llm", text_work("t", BLOCK, 10), IDLE) == ""
    affinity.sent("llm", text_work("t", b"hello", 10), "a:1")
    assert affinity.home("llm", text_work("t", b"hello", 10), IDLE) == ""


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
        ({"max_tokens": 10**12}, MOST_TOKENS - 10),  # what is asked for makes nobody look busy
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


@pytest.mark.parametrize(("n", "sequences"), [(3, 3), (0, 1), (True, 1), (10**9, MOST_SEQUENCES)])
def test_a_request_for_several_texts_counts_as_so_many(n, sequences):
    sampling = b"\0\0\0\0" + orjson.dumps({"max_tokens": 90, "n": n})
    inputs = [SimpleNamespace(name=name) for name in ("text_input", "sampling_parameters")]
    work = text_work_of("t", inputs, [b"\0\0\0\0" + b"x" * 40, sampling])
    assert work is not None
    assert (work.tokens, work.sequences) == (100 * sequences, sequences)


@pytest.fixture
def pool():
    pool = ReplicaPool(Connection, 8)
    pool.apply(["a:1", "b:1", "c:1", "d:1"])
    return pool


def _homes(pool: ReplicaPool, work: TextWork, times: int = 20) -> set[Replica]:
    return {pool.permit("llm", work=work).replica for _ in range(times)}


WORK = text_work("t", 4 * BLOCK, 100)


async def test_a_text_that_was_continued_comes_back_while_there_is_room(pool):
    permit = pool.permit("llm", work=WORK)
    home = permit.replica
    with permit:
        assert home.tokens == WORK.tokens
    assert home.tokens == home.texts == 0
    assert _homes(pool, WORK) == {home}
    with home.permit("llm", work=WORK), home.permit("llm", work=WORK):
        assert home not in _homes(pool, WORK)


async def test_a_text_whose_reader_has_enough_was_continued(pool):
    permit = pool.permit("llm", work=WORK)
    with pytest.raises(GeneratorExit), permit:
        raise GeneratorExit
    assert _homes(pool, WORK) == {permit.replica}


async def test_one_that_refuses_at_once_draws_no_conversation(pool):
    """It has nothing under way, and so always room."""
    with pool.permit("llm", work=WORK) as upstream:
        home = next(replica for replica in pool.replicas if replica.upstream is upstream)
    with pytest.raises(NoCapacity), home.permit("llm", work=WORK):
        raise NoCapacity("full")
    assert home not in _homes(pool, WORK, 10)


async def test_one_that_is_much_slower_draws_none_either(pool):
    with pool.permit("llm", work=WORK) as upstream:
        home = next(replica for replica in pool.replicas if replica.upstream is upstream)
    now = time.monotonic()
    for replica in pool.replicas:
        for _ in range(30):
            replica.record("llm").answered(1.0 if replica is home else 0.1, now)
    assert len(_homes(pool, WORK, 60)) > 1


async def test_many_processes_do_not_send_what_is_new_to_the_same_one():
    homes = []
    for _ in range(40):
        other = ReplicaPool(Connection, 8)
        other.apply(["a:1", "b:1", "c:1", "d:1"])
        homes.append(other.permit("llm", work=WORK).replica.address)
    assert all(homes.count(f"{name}:1") >= 2 for name in "abcd")


async def test_what_is_no_text_is_work_too(pool):
    with ExitStack() as embeddings:
        for replica in pool.replicas[:3]:
            for _ in range(7):
                embeddings.enter_context(replica.permit("embedding"))
        assert pool.replicas[3] in _homes(pool, text_work("t", b"hello", 10), 40)
        counts = [pool.permit("llm", work=text_work("t", b"hi", 9)).replica for _ in range(200)]
        # Of two that are drawn it wins whenever it is one of them: 7 times of 16.
        assert 60 < counts.count(pool.replicas[3]) < 120
