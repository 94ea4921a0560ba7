"""Ports and addresses: whether one of our servers can listen there, and if not, why not."""

import errno
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from modelspec.address import resolved
from serving.errors import PortTaken, ServingError

REPLICA_STEP = 10  # replica k listens 10*k higher
# Below the ephemeral ports that outgoing connections get (Linux: from 32768, by default).
NOT_EPHEMERAL = (15_000, 32_000)
ALL_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104 - recognised, not bound


@dataclass(frozen=True)
class Ports:
    """Where one Triton listens."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    def replica(self, number: int) -> "Ports":
        step = REPLICA_STEP * number
        return Ports(self.http + step, self.grpc + step, self.metrics + step)

    def endpoints(self, address: str) -> list["Endpoint"]:
        """The endpoints that it listens on, with the flags of ``tidegate up`` that set them."""
        ports = {"http": self.http, "grpc": self.grpc, "metrics": self.metrics}
        return [Endpoint(f"triton-{name}-port", address, port) for name, port in ports.items()]


@dataclass(frozen=True)
class Endpoint:
    """An address and port to listen on; ``flag`` is the option that sets the port, without its
    leading dashes."""

    flag: str
    address: str
    port: int

    @property
    def setting(self) -> str:
        """The flag and its environment variable, as messages show them."""
        return f"--{self.flag} (TIDEGATE_{self.flag.upper().replace('-', '_')})"

    def conflicts_with(self, other: "Endpoint") -> bool:
        """Whether the two cannot listen at the same time; ServingError if an address is unknown."""
        addresses = {_resolved(self.address)[1], _resolved(other.address)[1]}
        is_shared = len(addresses) == 1 or not addresses.isdisjoint(ALL_ADDRESSES)
        return is_shared and self.port == other.port


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nothing listens on now.

    They may be used minutes later (a first start converts before it serves): the kernel gives none
    of them to an outgoing connection in the meantime.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(*NOT_EPHEMERAL)  # noqa: S311 - nothing secret
        if port not in ports and not is_taken("127.0.0.1", port):
            ports.append(port)
    return ports


def require_free(endpoints: Sequence[Endpoint]) -> None:
    """ServingError for the first endpoint that is not available says why and what to do; PortTaken
    if something listens there."""
    for index, endpoint in enumerate(endpoints):
        for before in endpoints[:index]:
            if endpoint.conflicts_with(before):
                raise ServingError(
                    f"port {endpoint.port} is given twice, by --{before.flag} and "
                    f"--{endpoint.flag}: choose another with {endpoint.setting}"
                )
        _require(endpoint)


def is_taken(address: str, port: int) -> bool:
    """Whether something listens there; ServingError if this machine has no such address."""
    fault = _bind(_resolved(address), port)
    return fault is not None and fault.errno == errno.EADDRINUSE


def _require(endpoint: Endpoint) -> None:
    address, port = endpoint.address, endpoint.port
    fault = _bind(_resolved(address), port)
    if fault is None:
        return
    if fault.errno == errno.EADDRINUSE:
        raise PortTaken(
            f"port {port} is taken: stop what listens there, or choose another with "
            f"{endpoint.setting}"
        )
    if fault.errno == errno.EADDRNOTAVAIL:
        raise ServingError(
            f"{address} is not an address of this machine: set --host (TIDEGATE_HOST) to one that "
            "it has, or to 0.0.0.0 for all of them"
        )
    if fault.errno in (errno.EACCES, errno.EPERM):
        raise ServingError(
            f"this user may not open port {port} (ports below 1024 need privileges): choose "
            f"another with {endpoint.setting}"
        )
    raise ServingError(f"nothing can listen on {address}, port {port}: {fault.strerror}")


_Resolved = tuple[socket.AddressFamily, str]


def _resolved(address: str) -> _Resolved:
    try:
        return resolved(address)
    except (OSError, UnicodeError):
        raise ServingError(
            f"{address!r} is neither an address nor a host name: set --host (TIDEGATE_HOST) to an "
            "address of this machine, such as 127.0.0.1 or 0.0.0.0"
        ) from None


def _bind(resolved: _Resolved, port: int) -> OSError | None:
    """Why nothing can listen there; None when something can."""
    family, address = resolved
    try:
        with socket.socket(family) as probe:
            # As servers do: a port in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        return error
    return None
