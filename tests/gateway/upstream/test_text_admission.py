"""How many texts a language model continues at a time, whose is the next, and what is kept free."""

import asyncio
import collections

import pytest

from gateway.errors import DeadlineExceeded
from gateway.models.catalogue import EngineCapacity
from gateway.upstream.text_admission import FIRST_UNBEGUN, LATE_S, LEAST_UNBEGUN, TextQueue
from tests.gateway.clock import Clock

CAPACITY = EngineCapacity(16, 1600)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(clock):
    queue = TextQueue(CAPACITY, 1.0, clock)
    queue.is_shared = True
    return queue


async def _enter(queue, tenant="flood", tokens=100, weight=1.0, timeout_s=5.0, **options):
    return await queue.enter(tenant, weight, timeout_s, tokens=tokens, **options)


async def _sent(queue, count, tenant="flood", **options):
    """Tasks that enter the queue: those that have their turn, and those that wait."""
    tasks = [asyncio.create_task(_enter(queue, tenant, **options)) for _ in range(count)]
    for _ in range(3):
        await asyncio.sleep(0)
    return [task for task in tasks if task.done()], [task for task in tasks if not task.done()]


async def _cancel(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_quarter_is_kept_for_tenants_that_have_nothing_under_way(queue):
    running, waiting = await _sent(queue, 50)
    assert (len(running), len(waiting)) == (12, 38)
    for tenant in ("quiet", "other"):
        ours, held = await _sent(queue, 2, tenant)
        assert (len(ours), len(held)) == (1, 1)  # their second one waits, as the flood does
        waiting += held
    assert queue.in_flight == 14
    await _cancel(waiting)
    assert queue.waiting == 0


async def test_one_request_for_several_texts_has_the_places_of_several(queue):
    running, waiting = await _sent(queue, 5, sequences=4)
    assert (len(running), queue.sequences) == (3, 12)  # three quarters of sixteen
    await _cancel(waiting)
    running[0].result().leave()
    assert queue.sequences == 8


async def test_a_request_for_more_texts_than_there_are_places_runs_alone(queue):
    (all_of_it,), held = await _sent(queue, 1, sequences=100)
    _, waiting = await _sent(queue, 1, "quiet")
    assert (queue.sequences, len(held), len(waiting)) == (16, 0, 1)
    all_of_it.result().leave()
    assert (await waiting[0]) is not None


async def test_without_tenants_nothing_is_kept(queue):
    queue.is_shared = False
    running, waiting = await _sent(queue, 50)
    assert (len(running), queue.tokens) == (16, 1600)
    await _cancel(waiting)


async def test_the_tokens_bound_what_the_places_do_not(queue):
    running, waiting = await _sent(queue, 10, tokens=300)
    assert (len(running), queue.tokens) == (4, 1200)
    (small,), _ = await _sent(queue, 1, "quiet", tokens=400)
    small.result().leave()
    assert queue.tokens == 1200
    for task in running:
        task.result().leave()
        task.result().leave()  # once is enough
    await asyncio.sleep(0)
    assert queue.tokens == 1200  # the next four
    await _cancel(waiting)
    for task in waiting:
        if not task.cancelled():
            task.result().leave()
    assert (queue.in_flight, queue.tokens, queue.waiting) == (0, 0, 0)


async def test_an_engine_that_says_nothing_has_a_bound_too(queue):
    queue.resize(EngineCapacity(), 2.0)
    running, waiting = await _sent(queue, 120, tokens=4096)
    assert len(running) == 96
    await _cancel(waiting)


async def test_a_text_larger_than_the_engine_needs_not_run_alone(queue):
    (large,), _ = await _sent(queue, 1, tokens=100_000)
    assert queue.tokens == 400
    running, waiting = await _sent(queue, 1)
    assert (running, waiting) != ([], [])
    large.result().leave()
    await _cancel(waiting)


async def test_more_servers_let_more_in(queue):
    running, waiting = await _sent(queue, 30)
    assert len(running) == 12
    queue.resize(CAPACITY, 2.0)
    await asyncio.sleep(0)
    assert queue.in_flight == 24
    queue.resize(CAPACITY, 0.25)
    assert queue.in_flight == 24  # nothing that runs is ended
    for task in running:
        task.result().leave()
    await asyncio.sleep(0)
    assert queue.in_flight == 12
    await _cancel(waiting)


async def test_tenants_take_turns_by_the_tokens_of_their_texts_and_their_weights(queue):
    queue.resize(EngineCapacity(4), 1.0)
    order = []

    async def text(tenant, tokens, weight):
        with await _enter(queue, tenant, tokens, weight, timeout_s=1e6):
            order.append(tenant)
            for _ in range(3):
                await asyncio.sleep(0)

    texts = [("long", 300, 1.0), ("short", 100, 1.0), ("heavy", 100, 2.0)] * 60
    await asyncio.gather(*(text(*one) for one in texts))
    first = collections.Counter(order[6:66])
    assert first["short"] == pytest.approx(3 * first["long"], abs=5)
    assert first["heavy"] == pytest.approx(2 * first["short"], abs=5)
    assert (queue.in_flight, queue.tokens, queue.waiting) == (0, 0, 0)


async def test_what_an_engine_has_no_room_for_holds_its_own_tenant_back(queue, clock):
    """It generates two texts at a time, of a second each, and says nothing about that."""
    queue.resize(EngineCapacity(), 1.0)
    begun, streams = collections.deque(), []
    most = 0
    tasks = [asyncio.create_task(_enter(queue, timeout_s=1e6, is_stream=True)) for _ in range(60)]
    for second in range(20):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        streams += [task.result() for task in tasks if task.done()]
        tasks = [task for task in tasks if not task.done()]
        if second == 10:
            (other,), _ = await _sent(queue, 1, "quiet", is_stream=True)
            assert other.result()  # at once
        if second > 8:
            most = max(most, len(streams))
        clock.now += 1.0
        while begun:
            begun.popleft().leave()
        while streams and len(begun) < 2:
            begun.append(streams.pop(0))
            begun[-1].has_responded()
    assert most <= LEAST_UNBEGUN + 2
    await _cancel(tasks)


async def test_a_tenant_may_have_more_streams_at_once_while_first_tokens_come_soon(queue):
    queue.resize(EngineCapacity(), 1.0)
    running, waiting = await _sent(queue, 60, is_stream=True)
    assert len(running) == FIRST_UNBEGUN
    begun, rest = [], [*running, *waiting]
    while unbegun := [task for task in rest if task.done() and task not in begun]:
        begun += unbegun
        for task in unbegun:
            task.result().has_responded()
        await asyncio.sleep(0)
    assert len(begun) == 48  # all that one tenant may have
    assert queue._tenants["flood"].most_unbegun > FIRST_UNBEGUN
    await _cancel([task for task in rest if not task.done()])


async def test_one_late_stream_holds_back_all_but_a_few_of_its_own_tenant(queue, clock):
    queue.resize(EngineCapacity(), 1.0)
    await _sent(queue, 2, is_stream=True)
    clock.now += 2 * LATE_S
    _, held = await _sent(queue, 1, is_stream=True)
    assert len(held) == 1
    (whole,), _ = await _sent(queue, 1, "quiet", is_stream=False)
    assert whole.result()
    await _cancel(held)


async def test_one_whose_client_left_makes_room(queue):
    running, waiting = await _sent(queue, 14)
    await _cancel(waiting)
    assert (queue.waiting, queue.in_flight) == (0, 12)
    running[0].result().leave()
    assert queue.in_flight == 11
    with pytest.raises(DeadlineExceeded):
        await asyncio.gather(*(_enter(queue, timeout_s=0.01) for _ in range(2)))
    assert queue.waiting == 0


async def test_a_turn_that_is_lent_gives_its_tokens_too(queue):
    running, waiting = await _sent(queue, 13)
    turn = running[0].result()
    turn.lend()
    await asyncio.sleep(0)
    assert waiting[0].done()
    assert (queue.in_flight, queue.tokens) == (12, 1200)
    turn.take_back()
    assert (queue.in_flight, queue.tokens) == (13, 1300)
    turn.lend()
    turn.leave()
    for task in (*running[1:], *waiting):
        task.result().leave()
    assert (queue.in_flight, queue.tokens) == (0, 0)
    queue.forget_idle()
    assert "flood" not in queue._tenants or queue._tenants["flood"].served > queue._clock
