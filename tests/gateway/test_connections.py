"""Which connection gives way to a new one when there is no place left."""

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

    def is_strangers(self):
        return self.stranger

    def evict(self):
        self.is_open = False


def _full(**of):
    """Connections with no place left, the oldest first."""
    found = Connections(32)
    made = [Connection(**of) for _ in range(found.most)]
    assert all(found.opened(each, 0) for each in made)
    return found, made


def _gone(made):
    return [place for place, each in enumerate(made) if not each.is_open]


def test_the_one_that_was_idle_for_longest_gives_way():
    found, made = _full()
    found.opened(Connection(), 0)
    assert _gone(made) == [0]
    made[1].was_used = True  # a request began on it since
    found.opened(Connection(), 0)
    assert _gone(made) == [0, 2]


def test_a_new_one_is_not_closed_before_it_could_say_anything():
    """Where all others were used since they were looked at, it was the only one that was not."""
    found, made = _full()
    newest = Connection()
    found.opened(newest, 0)
    for each in made:
        each.was_used = True
    found.opened(Connection(), 0)
    assert newest.is_open


def test_where_all_were_used_of_late_one_gives_way_all_the_same(monkeypatch):
    monkeypatch.setattr("gateway.http.connections.EXAMINED", 4)  # fewer than there are
    found, made = _full()
    assert found.opened(Connection(), 0)
    assert _gone(made) == [0]


def test_busy_ones_stay_unless_they_are_a_strangers():
    found, made = _full(busy=True)
    assert not found.opened(Connection(), 0)
    made[3].stranger = True
    assert found.opened(Connection(), 0)
    assert _gone(made) == [3]
    assert found.evicted == 1


def test_one_with_something_unread_goes_after_all_others():
    found, made = _full()
    for each in made[:-1]:
        each.unread = True
    found.opened(Connection(busy=True), 0)
    assert _gone(made) == [len(made) - 1]
    found.opened(Connection(busy=True, stranger=True), 0)
    assert _gone(made) == [0, len(made) - 1]  # nothing else is left
    found.opened(Connection(), 0)
    assert _gone(made) == [0, len(made) - 1]  # but the stranger


def test_connections_are_scarce_before_there_are_none():
    found, made = _full()
    assert found.is_scarce
    for each in made[: found.most // 4]:
        found.closed(each)
    assert not found.is_scarce


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
def test_places_come_back(used):
    found, made = _full()
    made[0].was_used = used
    found.closed(made[0])
    assert found.opened(Connection(), 0)
    assert _gone(made) == []
