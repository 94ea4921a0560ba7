"""Triton's three ports, and whether they are free."""

import random
import socket
from dataclasses import dataclass

from serving.errors import PortTaken

REPLICA_STEP = 10  # replica k listens 10*k higher
# Where the kernel takes no port for an outgoing connection (Linux: from 32768, by default).
UNHANDED = (15_000, 32_000)


@dataclass(frozen=True)
class Ports:
    """Where one Triton listens."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    def replica(self, number: int) -> "Ports":
        step = REPLICA_STEP * number
        return Ports(self.http + step, self.grpc + step, self.metrics + step)


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


def require_free(address: str, ports: Ports) -> None:
    """PortTaken names the first port that something already listens on, and the way out."""
    for name, port in (("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.metrics)):
        if is_taken(address, port):
            raise PortTaken(
                f"port {port} is taken: stop what listens there, or choose another with "
                f"--triton-{name}-port (TIDEGATE_TRITON_{name.upper()}_PORT)"
            )


def is_taken(address: str, port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return True
    return False
