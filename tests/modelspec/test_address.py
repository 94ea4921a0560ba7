"""Addresses are parsed in one place, and an error says what is wrong."""

import re
import socket

import pytest

from modelspec.address import (
    host_and_port,
    joined,
    lookup_of,
    reached_at,
    require_replica,
    require_replicas,
    resolved,
)


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


def test_names_to_look_up():
    assert lookup_of("dns:triton.svc:8001/8000") == ("dns", "triton.svc", 8001, 8000)
    assert lookup_of("srv:_grpc._tcp.triton.svc") == ("srv", "_grpc._tcp.triton.svc", 0, 0)
    assert lookup_of("srv:_grpc._tcp.triton.svc/8000").http_port == 8000
    for address in ("10.0.0.5:8001", "triton:8001", "dns:8001", "srv:8001/8000"):
        assert lookup_of(address) is None
        assert require_replicas(address) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dns:triton", "is not HOST:PORT"),
        ("dns:triton:0", "a port is a number"),
        ("dns:10.0.0.5:8001", "is an address already: write 10.0.0.5:8001"),
        ("dns:[::1]:8001", "is an address already"),
        ("srv:_grpc._tcp.x:8001", "is not srv:NAME"),
        ("srv:", "is not srv:NAME"),
        ("srv:_grpc._tcp.x/http", "a port is a number"),
    ],
)
def test_wrong_names_to_look_up(text, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        require_replicas(text)
