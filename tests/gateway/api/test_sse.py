"""Server-sent events: what is sent when, to a client that reads, waits, stalls or disconnects."""

import asyncio
import contextlib

import orjson
import pytest

from gateway.api import event_streams as sse
from gateway.api.event_streams import EventStream, event
from gateway.errors import NoCapacity, UpstreamError
from gateway.http.request_context import ClientGone
from tests.gateway.request_contexts import context_of


class FakeClient:
    """An ASGI client: records messages, reads one in ``slow_s``, leaves when ``left`` is set."""

    def __init__(self, slow_s: float = 0) -> None:
        self.messages: list = []
        self.slow_s = slow_s
        self.left = asyncio.Event()

    async def send(self, message) -> None:
        self.messages.append(message)
        if message.get("more_body"):
            await asyncio.sleep(self.slow_s)

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


def _stream(client: FakeClient, events, timeout_s: float = 5) -> EventStream:
    context = context_of({"path": "/v1/x", "headers": []}, client.receive)
    return EventStream(context, events, timeout_s, contextlib.nullcontext())


async def test_events_with_their_headers_and_an_end():
    async def events():
        yield event(b"1")
        yield event(b"2")

    client = FakeClient()
    await _stream(client, events()).send(client.send)
    start, *_, end = client.messages
    headers = dict(start["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-cache"
    assert headers[b"x-accel-buffering"] == b"no"
    assert client.body == b"data: 1\n\ndata: 2\n\n"
    assert end == {"type": "http.response.body", "body": b""}


async def test_what_fails_before_the_first_event_is_an_ordinary_error():
    async def events():
        raise NoCapacity("full")
        yield

    client = FakeClient()
    with pytest.raises(NoCapacity):
        await _stream(client, events()).send(client.send)
    assert client.messages == []


async def test_what_fails_later_is_the_last_event():
    async def events():
        yield event(b"1")
        raise UpstreamError("secret")

    client = FakeClient()
    await _stream(client, events()).send(client.send)
    first, last = client.body.strip().split(b"\n\n")
    assert first == b"data: 1"
    error = orjson.loads(last.removeprefix(b"data: "))
    assert (error["code"], error["status"]) == ("upstream_error", 502)


async def test_a_heartbeat_only_while_nothing_comes(monkeypatch):
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.6)

    async def events():
        for number in range(20):
            yield event(b"%d" % number)
            await asyncio.sleep(0.04)
        while client.body.count(sse.HEARTBEAT) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    client = FakeClient()
    await _stream(client, events()).send(client.send)
    await asyncio.sleep(0.7)
    before, _, after = client.body.partition(event(b"19"))
    assert sse.HEARTBEAT not in before
    assert after == sse.HEARTBEAT * 2
    assert sse.HEARTBEAT.startswith(b":")


async def test_an_event_that_comes_as_a_heartbeat_begins_is_sent():
    client = FakeClient()
    async with asyncio.timeout(None) as patience:
        connection = sse._Connection(client.send, 5, patience)
        connection._start_writing()  # a task, which has not run
        await connection.write(event(b"1"))
        await connection.close()
        connection.stop()
    assert client.body == event(b"1")


async def test_no_event_is_produced_before_the_previous_one_was_read():
    produced, reads = [], asyncio.Semaphore(0)

    async def events():
        for number in range(1000):
            produced.append(number)
            yield event(b"%d" % number)

    async def send(message):
        client.messages.append(message)
        if message.get("more_body"):
            await reads.acquire()

    client = FakeClient()
    task = asyncio.create_task(_stream(client, events(), timeout_s=60).send(send))
    for count in range(1, 6):
        async with asyncio.timeout(30):
            while len(client.messages) <= count:  # noqa: ASYNC110 - the first one is the head
                await asyncio.sleep(0.001)
        await asyncio.sleep(4 * sse.HOLD_S)  # what follows a write at once is held for the next
        assert len(produced) == count
        reads.release()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_client_that_does_not_read_is_disconnected():
    closed = []

    async def events():
        try:
            while True:
                yield event(b"1")
        finally:
            closed.append(True)

    client = FakeClient(slow_s=60)
    with pytest.raises(ClientGone):
        async with asyncio.timeout(30):
            await _stream(client, events(), timeout_s=0.1).send(client.send)
    assert closed


async def test_a_client_that_leaves_ends_the_events_at_once():
    closed = []

    async def events():
        yield event(b"1")
        try:
            await asyncio.Future()
        finally:
            closed.append(True)

    client = FakeClient()
    task = asyncio.create_task(_stream(client, events()).send(client.send))
    await asyncio.sleep(0.1)
    client.left.set()
    with pytest.raises(ClientGone):
        async with asyncio.timeout(30):
            await task
    assert closed
