"""Large bodies share the event loop: one part of one of them per iteration."""

import asyncio

import uvloop

from gateway.http.round_robin import RoundRobin


def test_one_turn_in_each_round_and_none_is_lost():
    async def run():
        turns, iterations, taken = RoundRobin(), [0], []
        ended = asyncio.Event()

        def count():
            iterations[0] += 1
            if not ended.is_set():
                asyncio.get_running_loop().call_soon(count)

        async def reader(name):
            for _ in range(5):
                await turns.take("x")
                taken.append((name, iterations[0]))

        count()
        readers = [asyncio.create_task(reader(name)) for name in "abcd"]
        given_up = asyncio.create_task(turns.take("x"))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait_for(asyncio.gather(*readers), 20)
        ended.set()
        return taken

    taken = uvloop.run(run())
    assert len(taken) == 20
    seen = [turn for _, turn in taken]
    assert len(set(seen)) == len(seen)
    assert [name for name, _ in taken[:4]] == list("abcd")  # first come, first served


def test_tenants_take_turns():
    """One tenant's many connections do not hold up another's single one."""

    async def run():
        turns, taken = RoundRobin(), []

        async def reader(tenant):
            for _ in range(5):
                await turns.take(tenant)
                taken.append(tenant)

        readers = [asyncio.create_task(reader(tenant)) for tenant in [*"a" * 40, "b", ""]]
        await asyncio.wait_for(asyncio.gather(*readers), 20)
        return taken

    taken = uvloop.run(run())
    assert (taken.count("a"), taken.count("b"), taken.count("")) == (200, 5, 5)
    assert max(n for n, tenant in enumerate(taken) if tenant != "a") < 30


def test_a_turn_that_fails_is_not_the_last():
    async def run():
        turns = RoundRobin()
        failed = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().set_exception_handler(lambda *_: failed.set_result(True))
        turns.call(lambda: 1 / 0, "a")
        await asyncio.wait_for(turns.take("a"), 20)
        return failed.result()

    assert uvloop.run(run())
