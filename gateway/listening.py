"""Sockets for the gateway's listeners: ``TIDEGATE_HOST`` means the same for all of them."""

import ipaddress
import socket

from modelspec.address import resolved

ALL_IPV6 = "::"


def listening_socket(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """A bound socket, which listens once a server takes it over; ``::`` accepts IPv4 too, as gRPC's
    listener does. With ``is_shared`` several processes may bind the port, each with its own socket.

    Raises OSError if the address cannot be bound.
    """
    family, address = resolved(host)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address == ALL_IPV6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((address, port))
    except OSError:
        listener.close()
        raise
    return listener


def peer_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The client's address: a listener on ``::`` sees an IPv4 client as ``::ffff:10.0.0.5``, which
    is converted back. Raises ValueError if ``host`` is not an address."""
    address = ipaddress.ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address
