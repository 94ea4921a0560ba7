"""Addresses as people write them: ``10.0.0.5:8001``, ``triton.example:8001``, ``[::1]:8001``."""

import ipaddress
import re
import socket
from typing import Literal, NamedTuple

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")


def host_and_port(text: str) -> tuple[str, int]:
    """The host (an IPv6 address without its brackets) and the port; ValueError says what is wrong.
    Does not check whether the host exists."""
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not is_ipv6(host):
            raise ValueError(f"{text!r}: {host!r} is not an IPv6 address")
    elif is_ipv6(host) or is_ipv6(text.strip()):
        example = f"[{host}]:{port}" if is_ipv6(host) else f"[{text.strip()}]:8001"
        raise ValueError(f"{text!r}: put an IPv6 address in brackets, such as {example}")
    elif not colon or not _NAME.fullmatch(host):
        raise ValueError(f"{text!r} is not HOST:PORT, such as 10.0.0.5:8001 or [::1]:8001")
    return host, _port(text, port)


def require_replica(text: str) -> str:
    """Return the text itself, HOST:GRPC_PORT or HOST:GRPC_PORT/HTTP_PORT; ValueError if it is
    neither."""
    address, slash, http_port = text.partition("/")
    host_and_port(address)
    if slash:
        _port(text, http_port)
    return text


class Lookup(NamedTuple):
    """A DNS name whose addresses are replicas. ``grpc_port`` is 0 for ``srv``, whose records have
    the ports; ``http_port`` is 0 if the replicas are not called over HTTP."""

    kind: Literal["dns", "srv"]
    name: str
    grpc_port: int
    http_port: int


def lookup_of(text: str) -> Lookup | None:
    """What ``dns:HOST:GRPC_PORT`` or ``srv:NAME`` asks to look up, either with ``/HTTP_PORT`` or
    without; None for the address of one replica. ValueError says what is wrong."""
    kind, _, rest = text.partition(":")
    # A host may be called dns or srv.
    if kind not in ("dns", "srv") or rest.partition("/")[0].isdecimal():
        return None
    target, slash, http_text = rest.partition("/")
    http_port = _port(text, http_text) if slash else 0
    if kind == "srv":
        if not _NAME.fullmatch(target):
            raise ValueError(f"{text!r} is not srv:NAME, such as srv:_grpc._tcp.triton.example")
        return Lookup("srv", target, 0, http_port)
    host, grpc_port = host_and_port(target)
    if is_ip(host):
        raise ValueError(f"{text!r}: {host} is an address already: write {rest}")
    return Lookup("dns", host, grpc_port, http_port)


def require_replicas(text: str) -> str:
    """Return the text itself: the address of a replica (``require_replica``), or a DNS name to look
    up (``lookup_of``); ValueError if it is neither."""
    return text if lookup_of(text) else require_replica(text)


def joined(host: str, port: int) -> str:
    """``HOST:PORT`` as gRPC and URLs take it, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolved(host: str) -> tuple[socket.AddressFamily, str]:
    """The family and the one address that a listener on ``host`` binds: the IPv4 one of a name that
    has both, such as localhost. OSError or UnicodeError when the name cannot be resolved."""
    addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    family, _, _, _, sockaddr = min(addresses, key=lambda info: info[0] != socket.AF_INET)
    zone = ""
    if family == socket.AF_INET6 and len(sockaddr) == 4 and sockaddr[3]:
        zone = f"%{sockaddr[3]}"
    return family, str(sockaddr[0]).partition("%")[0] + zone


def reached_at(host: str) -> str:
    """The address on this machine that reaches a listener on ``host``: the loopback address where
    it listens on every address of its family."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound


def _port(text: str, port: str) -> int:
    if not (port.isdecimal() and port.isascii() and 0 < int(port) < 65536):
        raise ValueError(f"{text!r}: a port is a number from 1 to 65535")
    return int(port)


def is_ip(host: str) -> bool:
    """Whether it is an IP address, of either family, without brackets."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_ipv6(host: str) -> bool:
    """Whether it is an IPv6 address, with a zone (``fe80::1%eth0``) or without."""
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
