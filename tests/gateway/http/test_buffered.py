"""The head of a response leaves with its first bytes; nothing is held back for longer."""

import asyncio

from gateway.http.buffered import _BufferedTransport


class Transport:
    def __init__(self):
        self.written, self.closed = [], False

    def write(self, data):
        self.written.append(data)

    def close(self):
        self.closed = True

    def abort(self):
        self.closed = True

    def is_closing(self):
        return self.closed


async def test_two_writes_are_one():
    transport = Transport()
    buffered = _BufferedTransport(transport, asyncio.get_running_loop())
    buffered.write(b"head ")
    buffered.write(b"body")
    assert transport.written == [b"head body"]
    await asyncio.sleep(0)
    assert transport.written == [b"head body"]


async def test_a_head_without_a_body_yet_is_not_kept():
    transport = Transport()
    _BufferedTransport(transport, asyncio.get_running_loop()).write(b"head")
    assert transport.written == []
    await asyncio.sleep(0)
    assert transport.written == [b"head"]


async def test_closing_sends_what_is_held():
    transport = Transport()
    buffered = _BufferedTransport(transport, asyncio.get_running_loop())
    buffered.write(b"last words")
    buffered.close()
    assert transport.written == [b"last words"]
    assert buffered.is_closing()


async def test_what_is_written_after_the_client_has_left_is_dropped():
    """uvloop raises for it, in a callback of the loop: a traceback for each client that leaves."""
    transport = Transport()
    buffered = _BufferedTransport(transport, asyncio.get_running_loop())
    buffered.write(b"held")
    transport.closed = True
    buffered.write(b"more")
    await asyncio.sleep(0)
    buffered.write(b"later")
    await asyncio.sleep(0)
    assert transport.written == []
