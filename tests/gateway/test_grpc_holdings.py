"""What one caller may hold of a worker beside the limits."""

import asyncio

import pytest

from gateway.addons.grpc_door import holdings
from gateway.addons.grpc_door.holdings import MAX_SILENT_STREAMS, Holdings
from gateway.errors import QuotaExceeded


class Stream:
    def __init__(self) -> None:
        self.fault = None

    def end(self, fault) -> None:
        self.fault = fault


@pytest.fixture
def held() -> Holdings:
    return Holdings()


def test_silent_streams_are_counted_for_each_caller(held):
    streams = [Stream() for _ in range(MAX_SILENT_STREAMS)]
    for stream in streams:
        held.open_stream("a", stream.end)
    with pytest.raises(QuotaExceeded, match="nothing is under way"):
        held.open_stream("a", Stream().end)
    held.open_stream("b", Stream().end)
    held.leave("a", streams[0].end)
    held.open_stream("a", Stream().end)
    assert not any(stream.fault for stream in streams)


def test_the_stream_that_is_silent_for_longest_makes_room(held):
    """A message each must not buy more of them than may be open."""
    streams = [Stream() for _ in range(MAX_SILENT_STREAMS + 2)]
    for stream in streams:
        held.open_stream("a", stream.end)
        held.leave("a", stream.end)  # a message is under way
    for stream in streams:
        held.fell_silent("a", stream.end)
    assert [bool(stream.fault) for stream in streams] == [True] * 2 + [False] * MAX_SILENT_STREAMS
    for stream in streams:
        held.leave("a", stream.end)
    assert not held._silent


async def test_messages_arrive_a_few_at_a_time(held):
    at_once, most = 0, 0

    async def read(caller: str) -> None:
        nonlocal at_once, most
        async with held.arriving(caller):
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0.01)
            at_once -= 1

    await asyncio.gather(*(read("a") for _ in range(3 * holdings.MAX_ARRIVING)))
    assert most == holdings.MAX_ARRIVING
    assert not held._arriving


async def test_another_caller_does_not_wait(held):
    async def hold() -> None:
        async with held.arriving("a"):
            await asyncio.sleep(9)

    tasks = [asyncio.create_task(hold()) for _ in range(2 * holdings.MAX_ARRIVING)]
    await asyncio.sleep(0)
    async with asyncio.timeout(1), held.arriving("b"):
        pass
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not held._arriving
