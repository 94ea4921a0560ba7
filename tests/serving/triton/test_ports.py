"""Where a server may listen: the error says exactly what is wrong with an address or a port."""

import errno
import socket

import pytest

from serving.errors import PortTaken, ServingError
from serving.triton import ports
from serving.triton.ports import Endpoint, free_ports, require_free

(FREE,) = free_ports(1)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("192.0.2.7", "192.0.2.7 is not an address of this machine: set --host"),
        ("no.such.host.invalid", "'no.such.host.invalid' is neither an address nor a host name"),
        ("2001:db8::7", "2001:db8::7"),
    ],
)
def test_an_address_that_is_not_ours(address, message):
    with pytest.raises(ServingError, match=message) as refused:
        require_free([Endpoint("gateway-port", address, FREE)])
    assert not isinstance(refused.value, PortTaken)


def test_a_port_that_this_user_may_not_open(monkeypatch):
    denied = OSError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(ports, "_bind", lambda resolved, port: denied)
    with pytest.raises(ServingError, match=r"may not open port 80 .*--admin-port") as refused:
        require_free([Endpoint("admin-port", "127.0.0.1", 80)])
    assert not isinstance(refused.value, PortTaken)


def test_a_port_that_something_listens_on():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"port {port} is taken.*\(TIDEGATE_GRPC_PORT\)"):
            require_free([Endpoint("grpc-port", "127.0.0.1", port)])


@pytest.mark.parametrize("other", ["127.0.0.1", "localhost", "0.0.0.0"])  # noqa: S104
def test_the_same_port_twice(other):
    endpoints = [
        Endpoint("gateway-port", other, FREE),
        Endpoint("triton-grpc-port", "127.0.0.1", FREE),
    ]
    message = f"port {FREE} is given twice, by --gateway-port and --triton-grpc-port"
    with pytest.raises(ServingError, match=message):
        require_free(endpoints)


def test_the_same_port_on_two_addresses_is_no_error():
    addresses = ("127.0.0.1", "127.0.0.2")
    require_free([Endpoint("gateway-port", address, FREE) for address in addresses])
