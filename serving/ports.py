"""Ports and addresses: whether a server of ours may listen there, and if not, why not."""

import errno
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from modelspec.address import resolved
from serving.errors import PortTaken, ServingError

REPLICA_STEP = 10  # replica k listens 10*k higher
# Where the kernel takes no port for an outgoing connection (Linux: from 32768, by default).
UNHANDED = (15_000, 32_000)
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
        """Where it listens, with the flags of ``tidegate up`` that say so."""
        ports = {"http": self.http, "grpc": self.grpc, "metrics": self.metrics}
        return [Endpoint(f"triton-{name}-port", address, port) for name, port in ports.items()]


@dataclass(frozen=True)
class Endpoint:
    """An address and port to listen on; ``flag`` is the option that names the port, without
    dashes in front."""

    flag: str
    address: str
    port: int

    @property
    def setting(self) -> str:
        """The flag and its environment variable, as a message names them."""
        return f"--{self.flag} (TIDEGATE_{self.flag.upper().replace('-', '_')})"

    def meets(self, other: "Endpoint") -> bool:
        """Whether both cannot listen at the same time; ServingError when an address is unknown."""
        mine, others = _resolved(self.address)[1], _resolved(other.address)[1]
        shared = mine == others or not {mine, others}.isdisjoint(ALL_ADDRESSES)
        return shared and self.port == other.port


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nothing listens on now.

    They may be used minutes later (a first start converts before it serves): no connection of
    anybody's gets one of them meanwhile.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(*UNHANDED)  # noqa: S311 - nothing secret
        if port not in found and not is_taken("127.0.0.1", port):
            found.append(port)
    return found


def require_free(endpoints: Sequence[Endpoint]) -> None:
    """ServingError says of the first endpoint that cannot be had why not, and the way out;
    PortTaken when that is because something listens there."""
    for place, endpoint in enumerate(endpoints):
        for before in endpoints[:place]:
            if endpoint.meets(before):
                raise ServingError(
                    f"port {endpoint.port} is given twice, by --{before.flag} and "
                    f"--{endpoint.flag}: choose another with {endpoint.setting}"
                )
        _require(endpoint)


def is_taken(address: str, port: int) -> bool:
    """Whether something listens there; ServingError when this machine has no such address."""
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
            f"{address} is no address of this machine: give --host (TIDEGATE_HOST) one that it has,"
            " or 0.0.0.0 for all of them"
        )
    if fault.errno in (errno.EACCES, errno.EPERM):
        raise ServingError(
            f"port {port} may not be opened by this user (ports below 1024 need rights): choose "
            f"another with {endpoint.setting}"
        )
    raise ServingError(f"nothing can listen on {address}, port {port}: {fault.strerror}")


_Resolved = tuple[socket.AddressFamily, str]


def _resolved(address: str) -> _Resolved:
    try:
        return resolved(address)
    except (OSError, UnicodeError):
        raise ServingError(
            f"{address!r} is neither an address nor the name of a machine: give --host "
            "(TIDEGATE_HOST) an address of this machine, such as 127.0.0.1 or 0.0.0.0"
        ) from None


def _bind(resolved: _Resolved, port: int) -> OSError | None:
    """Why nothing can listen there; None when something can."""
    family, address = resolved
    try:
        with socket.socket(family) as probe:
            # As servers do: a port in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        return error
    return None
