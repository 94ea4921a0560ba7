"""Bounds per caller on idle streams and arriving messages."""

import asyncio

import pytest

from gateway.api.grpc import caller_bounds
from gateway.api.grpc.caller_bounds import MAX_SILENT_STREAMS, CallerBounds
from gateway.errors import QuotaExceeded


class Stream:
    def __init__(self) -> None:
        self.fault = None

    def end(self, fault) -> None:
        self.fault = fault


@pytest.fixture
def bounds() -> CallerBounds:
    return CallerBounds(most_bytes=caller_bounds.MAX_ARRIVING, message_bytes=1)


def test_silent_streams_are_counted_for_each_caller(bounds):
    streams = [Stream() for _ in range(MAX_SILENT_STREAMS)]
    for stream in streams:
        bounds.open_stream("a", stream.end)
    with pytest.raises(QuotaExceeded, match="nothing is under way"):
        bounds.open_stream("a", Stream().end)
    bounds.open_stream("b", Stream().end)
    bounds.leave("a", streams[0].end)
    bounds.open_stream("a", Stream().end)
    assert not any(stream.fault for stream in streams)


def test_the_stream_that_is_silent_for_longest_makes_room(bounds):
    """Sending a message on each must not allow more silent streams than the bound."""
    streams = [Stream() for _ in range(MAX_SILENT_STREAMS + 2)]
    for stream in streams:
        bounds.open_stream("a", stream.end)
        bounds.leave("a", stream.end)  # a message is in flight
    for stream in streams:
        bounds.fell_silent("a", stream.end)
    assert [bool(stream.fault) for stream in streams] == [True] * 2 + [False] * MAX_SILENT_STREAMS
    for stream in streams:
        bounds.leave("a", stream.end)
    assert not bounds._silent


async def test_messages_arrive_a_few_at_a_time(bounds):
    current, peak = 0, 0

    async def read(caller: str) -> None:
        nonlocal current, peak
        async with bounds.arriving(caller):
            current += 1
            peak = max(peak, current)
            await asyncio.sleep(0.01)
            current -= 1

    await asyncio.gather(*(read("a") for _ in range(3 * caller_bounds.MAX_ARRIVING)))
    assert peak == caller_bounds.MAX_ARRIVING
    assert not bounds._arriving


@pytest.mark.parametrize(("most_bytes", "most_messages"), [(70, 2), (20, 1), (10_000, 16)])
async def test_arriving_messages_have_no_more_bytes_than_a_caller_may_hold(
    most_bytes, most_messages
):
    bounds = CallerBounds(most_bytes, message_bytes=32)
    at_once = [0]

    async def read() -> None:
        async with bounds.arriving("a"):
            at_once.append(at_once[-1] + 1)
            await asyncio.sleep(0.01)
            at_once.append(at_once[-1] - 1)

    await asyncio.gather(*(read() for _ in range(40)))
    assert max(at_once) == most_messages


async def test_another_caller_does_not_wait(bounds):
    async def hold() -> None:
        async with bounds.arriving("a"):
            await asyncio.sleep(60)

    tasks = [asyncio.create_task(hold()) for _ in range(2 * caller_bounds.MAX_ARRIVING)]
    await asyncio.sleep(0)
    async with asyncio.timeout(20), bounds.arriving("b"):
        pass
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not bounds._arriving
