"""Which connection is closed for a new one when there is no room left."""

import socket

import pytest

from gateway.http.bounded import _has_unread
from gateway.http.connections import Connections


class Connection:
    was_used = unread = False

    def __init__(self, busy=False, stranger=False):
        self.busy, self.stranger, self.is_open = busy, stranger, True

    def is_busy(self):
        return self.busy

    def has_unread(self):
        return self.unread

    def serves_stranger(self):
        return self.stranger

    def evict(self):
        self.is_open = False


def _full(**state):
    """A full pool, and its connections, the oldest first."""
    pool = Connections(32)
    connections = [Connection(**state) for _ in range(pool.most)]
    assert all(pool.opened(connection, 0) for connection in connections)
    return pool, connections


def _closed(connections):
    return [index for index, connection in enumerate(connections) if not connection.is_open]


def test_the_one_that_was_idle_for_longest_gives_way():
    pool, connections = _full()
    pool.opened(Connection(), 0)
    assert _closed(connections) == [0]
    connections[1].was_used = True  # a request began on it since
    pool.opened(Connection(), 0)
    assert _closed(connections) == [0, 2]


def test_a_new_one_is_not_closed_before_it_could_say_anything():
    """If all others were used since they were examined, it was the only one that was not."""
    pool, connections = _full()
    newest = Connection()
    pool.opened(newest, 0)
    for connection in connections:
        connection.was_used = True
    pool.opened(Connection(), 0)
    assert newest.is_open


def test_if_all_were_used_recently_one_gives_way_all_the_same(monkeypatch):
    monkeypatch.setattr("gateway.http.connections.EXAMINED", 4)  # fewer than there are
    pool, connections = _full()
    assert pool.opened(Connection(), 0)
    assert _closed(connections) == [0]


def test_busy_ones_stay_unless_they_are_a_strangers():
    pool, connections = _full(busy=True)
    assert not pool.opened(Connection(), 0)
    connections[3].stranger = True
    assert pool.opened(Connection(), 0)
    assert _closed(connections) == [3]
    assert pool.evicted == 1


def test_one_with_something_unread_goes_after_all_others():
    pool, connections = _full()
    for connection in connections[:-1]:
        connection.unread = True
    pool.opened(Connection(busy=True), 0)
    assert _closed(connections) == [len(connections) - 1]
    pool.opened(Connection(busy=True, stranger=True), 0)
    assert _closed(connections) == [0, len(connections) - 1]  # nothing else is left
    pool.opened(Connection(), 0)
    assert _closed(connections) == [0, len(connections) - 1]  # but the stranger


def test_connections_are_scarce_before_there_are_none():
    pool, connections = _full()
    assert pool.is_scarce
    for connection in connections[: pool.most // 4]:
        pool.closed(connection)
    assert not pool.is_scarce


def test_a_request_that_was_not_read_yet_is_seen():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = type("T", (), {"get_extra_info": lambda self, name: ours})()
        assert not _has_unread(transport)
        theirs.sendall(b"GET")
        assert _has_unread(transport)
        ours.recv(3)
        theirs.close()
        assert not _has_unread(transport)  # its end is no request
    assert not _has_unread(transport)  # nor is a closed one


@pytest.mark.parametrize("used", [True, False])
def test_slots_come_back(used):
    pool, connections = _full()
    connections[0].was_used = used
    pool.closed(connections[0])
    assert pool.opened(Connection(), 0)
    assert _closed(connections) == []
