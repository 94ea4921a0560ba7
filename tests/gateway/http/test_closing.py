"""How a connection ends: its last bytes have a time limit, and later ones are dropped."""

import asyncio

from gateway.http.bounded import _ClientTransport


class Transport:
    def __init__(self):
        self.written, self.closed, self.aborted = [], False, asyncio.Event()

    def write(self, data):
        self.written.append(data)

    def close(self):
        self.closed = True

    def abort(self):
        self.aborted.set()

    def is_closing(self):
        return self.closed


async def test_what_is_written_after_the_client_has_left_is_dropped():
    """uvloop raises for it, in a handler: a traceback for each client that leaves."""
    transport = Transport()
    client = _ClientTransport(transport, asyncio.get_running_loop())
    client.write(b"head")
    transport.closed = True
    client.write(b"body")
    assert transport.written == [b"head"]


async def test_a_client_that_does_not_read_the_last_bytes_is_cut_off(monkeypatch):
    monkeypatch.setattr("gateway.http.bounded.LINGER_S", 0.02)
    transport = Transport()
    _ClientTransport(transport, asyncio.get_running_loop()).close()
    assert transport.closed
    await asyncio.wait_for(transport.aborted.wait(), 20)


async def test_a_connection_that_ended_is_not_aborted(monkeypatch):
    monkeypatch.setattr("gateway.http.bounded.LINGER_S", 0.02)
    transport = Transport()
    client = _ClientTransport(transport, asyncio.get_running_loop())
    client.close()
    client.lost()
    await asyncio.sleep(0.1)
    assert not transport.aborted.is_set()
