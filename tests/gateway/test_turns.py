"""Large bodies share the event loop: one part of one of them in each of its rounds."""

import asyncio

import uvloop

from gateway.http.turns import Turns


def test_one_turn_in_each_round_and_none_is_lost():
    async def run():
        turns, rounds, taken = Turns(), [0], []
        ended = asyncio.Event()

        def count():
            rounds[0] += 1
            if not ended.is_set():
                asyncio.get_running_loop().call_soon(count)

        async def reader(name):
            for _ in range(5):
                await turns.take()
                taken.append((name, rounds[0]))

        count()
        readers = [asyncio.create_task(reader(name)) for name in "abcd"]
        given_up = asyncio.create_task(turns.take())
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait_for(asyncio.gather(*readers), 5)
        ended.set()
        return taken

    taken = uvloop.run(run())
    assert len(taken) == 20
    seen = [turn for _, turn in taken]
    assert len(set(seen)) == len(seen)
    assert [name for name, _ in taken[:4]] == list("abcd")  # first come, first served
