"""Server-sent events: what is sent when, to a client that reads, waits, stalls or leaves."""

import asyncio
import contextlib
import time

import orjson
import pytest

from gateway.api import event_streams as sse
from gateway.api.event_streams import EventStream, event
from gateway.errors import NoCapacity, UpstreamError
from gateway.http.request_context import ClientGone
from tests.gateway.request_contexts import context_of


class Wire:
    """An ASGI client: keeps what it gets, reads ``slow_s`` after each part, leaves when told."""

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
        return b"".join(each.get("body", b"") for each in self.messages)


def _stream(wire: Wire, events, patience_s: float = 5) -> EventStream:
    context = context_of({"path": "/v1/x", "headers": []}, wire.receive)
    return EventStream(context, events, patience_s, contextlib.nullcontext())


async def test_events_with_their_headers_and_an_end():
    async def events():
        yield event(b"1")
        yield event(b"2")

    wire = Wire()
    await _stream(wire, events()).send(wire.send)
    start, *_, end = wire.messages
    headers = dict(start["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-cache"
    assert headers[b"x-accel-buffering"] == b"no"
    assert wire.body == b"data: 1\n\ndata: 2\n\n"
    assert end == {"type": "http.response.body", "body": b""}


async def test_what_fails_before_the_first_event_is_an_ordinary_error():
    async def events():
        raise NoCapacity("full")
        yield

    wire = Wire()
    with pytest.raises(NoCapacity):
        await _stream(wire, events()).send(wire.send)
    assert wire.messages == []


async def test_what_fails_later_is_the_last_event():
    async def events():
        yield event(b"1")
        raise UpstreamError("secret")

    wire = Wire()
    await _stream(wire, events()).send(wire.send)
    first, last = wire.body.strip().split(b"\n\n")
    assert first == b"data: 1"
    shown = orjson.loads(last.removeprefix(b"data: "))
    assert (shown["code"], shown["status"]) == ("upstream_error", 502)


async def test_a_heartbeat_only_while_nothing_comes(monkeypatch):
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.05)

    async def events():
        for number in range(20):
            yield event(b"%d" % number)
            await asyncio.sleep(0.01 if number < 19 else 0.12)

    wire = Wire()
    await _stream(wire, events()).send(wire.send)
    await asyncio.sleep(0.1)
    before, _, after = wire.body.partition(event(b"19"))
    assert sse.BEAT not in before
    assert after == sse.BEAT * 2
    assert sse.BEAT.startswith(b":")


async def test_no_event_is_made_before_the_one_before_it_was_taken():
    made = []

    async def events():
        for number in range(1000):
            made.append(number)
            yield event(b"%d" % number)

    wire = Wire(slow_s=0.02)
    task = asyncio.create_task(_stream(wire, events()).send(wire.send))
    await asyncio.sleep(0.15)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 2 < len(made) < 12


async def test_a_client_that_does_not_read_is_given_up():
    closed = []

    async def events():
        try:
            while True:
                yield event(b"1")
        finally:
            closed.append(True)

    wire = Wire(slow_s=60)
    started = time.monotonic()
    with pytest.raises(ClientGone):
        await _stream(wire, events(), patience_s=0.1).send(wire.send)
    assert time.monotonic() - started < 1
    assert closed


async def test_a_client_that_leaves_ends_the_events_at_once():
    closed = []

    async def events():
        yield event(b"1")
        try:
            await asyncio.sleep(60)
        finally:
            closed.append(time.monotonic())

    wire = Wire()
    task = asyncio.create_task(_stream(wire, events()).send(wire.send))
    await asyncio.sleep(0.1)
    left = time.monotonic()
    wire.left.set()
    with pytest.raises(ClientGone):
        await task
    assert closed[0] - left < 0.1
