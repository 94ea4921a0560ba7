"""Long work off the event loop: who waits for whom."""

import asyncio
import threading
import time

import pytest

from gateway.errors import DeadlineExceeded
from gateway.http.off_loop import THREADS, OffLoop
from gateway.policy.principal import Grant, Principal
from tests.gateway.request_contexts import context_of

SCOPE = {"path": "/", "headers": [], "method": "POST"}


async def _connected():
    await asyncio.Event().wait()


def context(tenant: str, deadline_s: float = 10.0):
    request_context = context_of(SCOPE, _connected, deadline_s=deadline_s)
    request_context.principal = Principal("tester", "tester", Grant(tenant=tenant))
    return request_context


async def test_tenants_take_turns():
    off_loop, order, gate = OffLoop(), [], threading.Event()
    busy = [
        asyncio.create_task(off_loop.run(context("first"), gate.wait, 10)) for _ in range(THREADS)
    ]
    await asyncio.sleep(0.01)
    tasks = []
    for tenant in ("first", "first", "first", "first", "other"):
        tasks.append(asyncio.create_task(off_loop.run(context(tenant), order.append, tenant)))
        await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*busy, *tasks)
    assert order.index("other") <= 2
    assert sorted(order) == ["first"] * 4 + ["other"]


async def test_the_loop_goes_on_meanwhile():
    off_loop, gate = OffLoop(), threading.Event()
    work = asyncio.create_task(off_loop.run(context("a"), gate.wait, 10))
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not work.done()  # only the loop can end it
    gate.set()
    assert await work


async def test_what_waits_too_long_is_given_up_and_leaves_its_turn():
    off_loop, gate = OffLoop(), threading.Event()
    busy = [asyncio.create_task(off_loop.run(context("a"), gate.wait, 10)) for _ in range(THREADS)]
    await asyncio.sleep(0.01)
    with pytest.raises(DeadlineExceeded):
        await off_loop.run(context("a", 0.05), time.sleep, 0)
    gate.set()
    await asyncio.gather(*busy)
    for _ in range(3 * THREADS):
        assert await off_loop.run(context("b"), int, "7") == 7


async def test_work_that_fails_says_so_and_gives_its_thread_back():
    off_loop = OffLoop()
    for _ in range(2 * THREADS):
        with pytest.raises(ValueError, match="invalid literal"):
            await off_loop.run(context("a"), int, "x")
    assert await off_loop.run(context("a"), int, "7") == 7
