"""Whose turn is next, how many have one at a time, and who is refused."""

import asyncio
import collections

import numpy as np
import pytest

from gateway.errors import DeadlineExceeded, NoCapacity, QuotaExceeded
from gateway.upstream.admission import (
    BATCH_SHARE,
    GROWTH,
    LEAST,
    MOST_WAITING,
    ONE_BY_ONE,
    START,
    FairQueue,
    Limit,
    Tenant,
    Waiting,
)
from tests.gateway.clock import Clock

IN_BATCHES = Waiting(BATCH_SHARE)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(clock):
    queue = FairQueue(1, clock)
    queue.limit.value = 2
    return queue


async def _enter(queue, tenant="a", weight=1.0, timeout_s=5.0):
    return queue.try_enter() or await queue.enter(tenant, weight, timeout_s)


async def _served(queue, arrivals, took_s=None, weights=None):
    """The tenants in the order in which they had their turns, and how long these took: a second
    unless ``took_s`` says otherwise."""
    order = []

    async def request(tenant):
        with await _enter(queue, tenant, (weights or {}).get(tenant, 1.0), timeout_s=1e6):
            order.append(tenant)
            await asyncio.sleep(0)
            queue._time.now += (took_s or {}).get(tenant, 1.0)

    await asyncio.gather(*(request(tenant) for tenant in arrivals))
    assert (queue.in_flight, queue.waiting) == (0, 0)
    return order


async def test_nobody_waits_below_the_limit(queue):
    first, second = queue.try_enter(), queue.try_enter()
    assert first and second and queue.try_enter() is None
    first.leave()
    first.leave()  # once is enough
    assert queue.in_flight == 1
    assert queue.try_enter()


async def test_one_that_sends_fifty_times_as_much_waits_for_itself_alone(queue):
    order = await _served(queue, ["flood"] * 100 + ["quiet"] * 2)
    assert order[2:8].count("quiet") == 2  # soon after what was at the model already


async def test_tenants_take_turns_by_the_time_that_they_had_and_their_weights(queue):
    queue.limit.value = 1
    arrivals = ["a", *["a", "b", "c"] * 60]
    # c's requests take three times as long, and b has twice the weight.
    order = await _served(queue, arrivals, {"c": 3.0}, {"b": 2.0})
    first = collections.Counter(order[10:70])
    assert first["b"] == pytest.approx(2 * first["a"], abs=3)
    assert first["a"] == pytest.approx(3 * first["c"], abs=3)


async def test_a_long_request_lets_others_in_between_its_parts(queue):
    queue.limit.value = 1
    order = []

    async def parts():
        with await _enter(queue, "rows") as turn:
            for part in range(5):
                if part:
                    await turn.pass_on("rows", 1.0, 5.0)
                order.append("rows")
                await asyncio.sleep(0)
                queue._time.now += 1

    async def one():
        with await _enter(queue, "single"):
            order.append("single")

    await asyncio.gather(parts(), one(), one())
    assert order == ["rows", "single", "single", *["rows"] * 4]
    assert (queue.in_flight, queue.waiting) == (0, 0)


async def test_a_turn_that_is_lent_is_used_by_another_and_taken_back(queue):
    queue.limit.value = 1
    turn = await _enter(queue)
    waiting = asyncio.create_task(_enter(queue, "b"))
    await asyncio.sleep(0)
    turn.lend()
    with await waiting:
        turn.take_back()
        assert queue.in_flight == 2
    turn.leave()
    assert queue.in_flight == 0
    turn = await _enter(queue)
    turn.lend()
    turn.leave()  # its stream ended meanwhile
    turn.take_back()
    assert queue.in_flight == 0


async def test_rest_is_not_saved_up(queue):
    queue.limit.value = 1
    await _served(queue, ["a"] * 50 + ["b"] * 50)
    order = await _served(queue, ["a", *["a"] * 20, *["new"] * 20])
    assert order[1:21].count("new") == pytest.approx(10, abs=1)


async def test_a_turn_that_does_not_come_in_time(queue):
    with await _enter(queue), await _enter(queue):
        with pytest.raises(DeadlineExceeded, match="try again later"):
            await _enter(queue, timeout_s=0.01)
        assert queue.waiting == 0


async def test_a_client_that_leaves_takes_no_turn_with_it(queue):
    with await _enter(queue), await _enter(queue):
        leaving = [asyncio.create_task(_enter(queue)) for _ in range(10)]
        staying = asyncio.create_task(_enter(queue, "b"))
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
    await asyncio.wait(leaving)
    with await staying:
        assert (queue.in_flight, queue.waiting) == (1, 0)


async def test_a_turn_given_to_one_that_was_cancelled_at_that_moment_is_given_back(queue):
    queue.limit.value = 1
    turn = await _enter(queue)
    task = asyncio.create_task(_enter(queue))
    await asyncio.sleep(0)
    turn.leave()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert (queue.in_flight, queue.waiting) == (0, 0)


async def test_what_waits_when_the_gateway_stops_is_refused(queue):
    turns = [await _enter(queue), await _enter(queue)]
    waiting = [asyncio.create_task(_enter(queue, tenant)) for tenant in ("a", "b")]
    await asyncio.sleep(0)
    queue.close()
    for task in waiting:
        with pytest.raises(NoCapacity, match="the gateway is stopping") as caught:
            await task
        assert caught.value.retry_after_s == 1
    with pytest.raises(NoCapacity, match="the gateway is stopping"):
        await _enter(queue, "late")
    assert (queue.in_flight, queue.waiting) == (2, 0)
    for turn in turns:
        turn.leave()
    assert queue.in_flight == 0


async def test_a_full_queue_refuses_the_tenant_that_filled_it(queue):
    tasks = [asyncio.create_task(_enter(queue, "flood")) for _ in range(MOST_WAITING + 2)]
    await asyncio.sleep(0)
    with pytest.raises(NoCapacity, match="the model is busy"):
        await _enter(queue, "flood")
    quiet = asyncio.create_task(_enter(queue, "quiet"))
    for _ in range(3):
        await asyncio.sleep(0)
    refused = [task for task in tasks if task.done() and task.exception()]
    assert len(refused) == 1
    assert isinstance(refused[0].exception(), QuotaExceeded)
    assert refused[0].exception().retry_after_s >= 1
    with pytest.raises(QuotaExceeded, match="your share"):
        await _enter(queue, "flood")
    for task in (*tasks, quiet):
        task.cancel()
    await asyncio.gather(*tasks, quiet, return_exceptions=True)
    assert queue.waiting == 0


async def test_what_would_come_too_late_is_refused_at_once(queue):
    queue._interval_s = 0.1
    tasks = [asyncio.create_task(_enter(queue, "flood", timeout_s=60)) for _ in range(102)]
    await asyncio.sleep(0)
    with pytest.raises(NoCapacity) as caught:
        await _enter(queue, "flood", timeout_s=5)
    assert caught.value.retry_after_s == 10
    quiet = asyncio.create_task(_enter(queue, "quiet", timeout_s=5))  # its turn comes in time
    await asyncio.sleep(0)
    assert not quiet.done()
    for task in (*tasks, quiet):
        task.cancel()
    await asyncio.gather(*tasks, quiet, return_exceptions=True)


async def test_a_large_share_is_not_refused_for_the_queues_of_small_ones(queue):
    queue._interval_s = queue._turn_s = 0.02
    tasks = [
        asyncio.create_task(_enter(queue, f"small{number % 50}", timeout_s=60))
        for number in range(950)
    ]
    tasks += [
        asyncio.create_task(_enter(queue, "large", weight=50, timeout_s=60)) for _ in range(30)
    ]
    await asyncio.sleep(0)
    with pytest.raises(QuotaExceeded):
        await _enter(queue, "small1", timeout_s=15)
    large = asyncio.create_task(_enter(queue, "large", weight=50, timeout_s=15))
    await asyncio.sleep(0)
    assert not large.done()
    for task in (*tasks, large):
        task.cancel()
    await asyncio.gather(*tasks, large, return_exceptions=True)


def _model(limit, demand, instances, seconds):
    """Queue and compute seconds of a model whose instances each work on one request at a time."""
    at_once = min(demand, limit.value)
    return at_once, max(0.0, at_once / instances - 1) * seconds, seconds, ONE_BY_ONE


def _batching_model(limit, demand, most):
    """The same of one instance that works on batches of up to ``most``, each for 20 ms."""
    at_once = min(demand, limit.value)
    waiting = at_once - min(at_once / 2, most)
    return at_once, 0.02 * max(1.0, waiting / most), 0.02, IN_BATCHES


@pytest.mark.parametrize("instances", [1, 2, 8, 40])
@pytest.mark.parametrize("seconds", [0.003, 0.02, 1.0])
def test_the_limit_keeps_the_instances_busy_and_the_queue_short(instances, seconds):
    limit = Limit(1)
    for _ in range(30):
        limit.adjust(*_model(limit, 500, instances, seconds))
    assert max(LEAST, instances) <= limit.value
    assert limit.value <= max(LEAST, np.ceil((1 + ONE_BY_ONE.share) * instances * (1 + GROWTH)) + 1)


@pytest.mark.parametrize("most", [1, 8, 64, 200])
def test_batches_are_full_and_no_more_than_about_two_are_at_the_model(most):
    limit, values = Limit(1), []
    for _ in range(60):
        limit.adjust(*_batching_model(limit, 5000, most))
        values.append(limit.value)
    assert min(values[-20:]) >= 2 * most - 1
    assert max(values[-20:]) <= max(4, 3 * most)


def test_waiting_for_a_batch_on_purpose_is_no_queue():
    """10 ms, where a batch takes 5: with a limit of a few requests it could never be filled."""
    limit = Limit(1)
    for _ in range(60):
        limit.adjust(60, 0.010 + 0.005, 0.005, Waiting(BATCH_SHARE, 0.010))
    assert limit.value == START


def test_the_limits_of_two_processes_come_to_be_alike():
    """A flood was at one of them while the limit was found; now both are asked for as much."""
    one, two = Limit(1), Limit(1)
    one.value, two.value = 26, 2
    for _ in range(400):
        queue_s = 0.02 * max(0.0, (one.value + two.value) / 16 - 1)
        one.adjust(one.value, queue_s, 0.02, ONE_BY_ONE)
        two.adjust(two.value, queue_s, 0.02, ONE_BY_ONE)
    assert one.value / two.value < 3  # 13 before
    assert 16 <= one.value + two.value <= 36


def test_what_needs_no_limit_is_not_limited():
    """Batches are smaller than they might be, since no more is asked for."""
    limit = Limit(1)
    for _ in range(60):
        limit.adjust(*_batching_model(limit, 32, 64))
    assert limit.value == START


def test_a_bad_hour_is_not_taken_for_the_rule():
    """envoy #38338: a limit that was found under load stayed."""
    limit = Limit(1)
    for _ in range(20):
        limit.adjust(*_model(limit, 500, 2, 0.5))
    assert limit.value <= 4
    steps = 0
    while limit.value < 32:  # more instances were added
        limit.adjust(*_model(limit, 500, 64, 0.01))
        steps += 1
    assert steps <= 30  # 15 seconds


def test_nothing_is_learnt_while_nothing_is_measured():
    limit = Limit(2)
    for peak in (1, 10, 500):
        limit.adjust(peak, 0.0, 0.0, ONE_BY_ONE)
        limit.adjust(peak, 0.0, 0.01 if peak < limit.value else 0.0, IN_BATCHES)
    assert limit.value == 2 * START


async def test_what_could_not_be_answered_in_time_any_more_is_not_begun(queue, clock):
    """Or else all wait until their deadlines have nearly passed, and nobody is answered in time."""
    queue.measured(1, 0.0, 0.5, ONE_BY_ONE)  # half a second each
    first, second = queue.try_enter(), queue.try_enter()
    late = asyncio.create_task(queue.enter("a", 1.0, 4.0))
    begun = asyncio.create_task(queue.enter("a", 1.0, 4.0, has_begun=True))
    await asyncio.sleep(0)
    clock.now += 3.0
    early = asyncio.create_task(queue.enter("a", 1.0, 4.0))
    await asyncio.sleep(0)
    clock.now += 0.6
    first.leave()
    with pytest.raises(NoCapacity) as refused:
        await late
    assert refused.value.retry_after_s >= 1
    (await begun).leave()  # what has begun is not refused
    (await early).leave()
    second.leave()
    assert (queue.in_flight, queue.waiting) == (0, 0)


async def test_a_turn_that_would_come_too_late_to_be_answered_is_refused_at_once(queue, clock):
    queue.measured(1, 0.0, 0.5, ONE_BY_ONE)
    queue.limit.value = 1
    turns = [
        queue.try_enter(),
        *(asyncio.create_task(queue.enter("a", 1.0, 60.0)) for _ in "123456"),
    ]
    await asyncio.sleep(0)
    turns[0].leave()
    for turn in turns[1:4]:
        clock.now += 0.5
        (await turn).leave()  # one each half a second; three wait, and one is at the model
    assert queue.waiting == 2
    with pytest.raises(NoCapacity):
        await queue.enter("a", 1.0, 1.4)  # a second of waiting, and half a second of work
    fits = asyncio.create_task(queue.enter("a", 1.0, 1.6))
    await asyncio.sleep(0)
    assert queue.waiting == 3
    for turn in turns[4:]:
        (await turn).leave()
    (await fits).leave()


@pytest.mark.parametrize("compute_s", [0.5, 3.0])
async def test_what_a_model_took_long_ago_refuses_nobody(queue, clock, compute_s):
    """envoy #38338: a bad time must not be taken for the rule when nothing is measured any more."""
    queue.measured(1, 100.0, compute_s, ONE_BY_ONE)
    assert queue._least_s(Tenant(1.0)) == pytest.approx((1 + ONE_BY_ONE.share) * compute_s)
    queue.limit.value = 1
    first = queue.try_enter()
    waiting = asyncio.create_task(queue.enter("a", 1.0, 20.0))
    await asyncio.sleep(0)
    clock.now += 19.9
    queue.measured(1, 0.0, 0.0, ONE_BY_ONE)  # nothing was
    first.leave()
    (await waiting).leave()


async def test_heavy_requests_of_one_tenant_do_not_refuse_anothers_light_ones(queue, clock):
    """Triton measured the mean of all: three seconds, which a light request does not take."""
    queue.measured(1, 0.0, 3.0, ONE_BY_ONE)
    queue.limit.value = 1
    first = queue.try_enter()
    heavy = [asyncio.create_task(queue.enter("heavy", 1.0, 60.0)) for _ in range(3)]
    await asyncio.sleep(0)
    light = asyncio.create_task(queue.enter("light", 1.0, 2.0))
    await asyncio.sleep(0)
    assert not light.done()
    clock.now += 1.0
    first.leave()
    left = set()
    while not light.done():
        await asyncio.sleep(0)
        for turn in {turn for turn in heavy if turn.done()} - left:
            left.add(turn)
            turn.result().leave()
    light.result().leave()
    for turn in heavy:
        if turn not in left:
            (await turn).leave()
    assert (queue.in_flight, queue.waiting) == (0, 0)
