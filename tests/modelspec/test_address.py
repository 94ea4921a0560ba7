"""Addresses are parsed in one place, and an error says what is wrong."""

import socket

import pytest

from modelspec.address import host_and_port, joined, reached_at, require_replica, resolved


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8001", "127.0.0.1", 8001),
        ("[::1]:8001", "::1", 8001),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("localhost:8001", "localhost", 8001),
        ("triton_a.example.:65535", "triton_a.example.", 65535),
    ],
)
def test_an_address(text, host, port):
    assert host_and_port(text) == (host, port)
    assert joined(host, port) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("::1:8001", r"in brackets, such as \[::1\]:8001"),
        ("::1", r"such as \[::1\]:8001"),
        ("[::1]", "is not HOST:PORT"),
        ("[nothing]:8001", "'nothing' is not an IPv6 address"),
        ("127.0.0.1", "is not HOST:PORT"),
        (":8001", "is not HOST:PORT"),
        ("http://127.0.0.1:8001", "is not HOST:PORT"),
        ("a b:8001", "is not HOST:PORT"),
        ("localhost:0", "a port is a number"),
        ("localhost:65536", "a port is a number"),
        ("localhost:grpc", "a port is a number"),
        ("localhost:²", "a port is a number"),
        ("", "is not HOST:PORT"),
    ],
)
def test_an_invalid_address_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        host_and_port(text)


def test_a_replica_may_have_two_ports():
    assert require_replica("[::1]:8001/8000") == "[::1]:8001/8000"
    for invalid in ("[::1]:8001/", "a:8001/http", "8001/8000", "::1:8001/8000"):
        with pytest.raises(ValueError, match=r"port|HOST:PORT|brackets"):
            require_replica(invalid)


def test_where_a_listener_is():
    assert resolved("localhost") == (socket.AF_INET, "127.0.0.1")
    assert resolved("::1") == (socket.AF_INET6, "::1")
    assert [reached_at(host) for host in ("0.0.0.0", "::", "::1")] == ["127.0.0.1", "::1", "::1"]  # noqa: S104
