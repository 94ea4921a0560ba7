"""Where this gateway's listeners listen: one meaning of ``TIDEGATE_HOST`` for all of them."""

import ipaddress
import socket

from modelspec.address import resolved

ALL_IPV6 = "::"


def listening_socket(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """A socket that is bound, and listens once a server takes it; ``::`` takes IPv4 too, as gRPC's
    listener does. ``is_shared``: several processes bind the port, each with a socket of its own.

    OSError when it cannot be had.
    """
    family, address = resolved(host)
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address == ALL_IPV6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    return made


def peer_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Who is at the other end: a listener on ``::`` is told of an IPv4 client as
    ``::ffff:10.0.0.5``. ValueError for what is no address."""
    address = ipaddress.ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address
