"""Every HTTP connection of this process, and which of them is in no request.

A connection costs a descriptor, and a stranger may open as many as they like. Above a share of what
the process may open, the connection that has been in no request for longest is closed for each new
one: silent ones, half a head, idle keep-alive. One that is being answered is never closed for that.
"""

import resource
from typing import Protocol

HTTP_SHARE = 0.5  # of the descriptors; the rest is for gRPC, Triton, Redis and files
RESERVED = 16  # below the limit, whoever holds the others: there must be one for the next caller


class Closable(Protocol):
    def evict(self) -> None:
        """Close at once, unsent bytes included."""


class Connections:
    """``most`` HTTP connections at the same time, of ``descriptors`` of the process."""

    def __init__(self, descriptors: int) -> None:
        self.descriptors = descriptors
        self.most = max(8, int(descriptors * HTTP_SHARE))
        self.evicted = 0
        self._open = 0
        self._idle: dict[Closable, None] = {}  # the oldest first

    def __len__(self) -> int:
        return self._open

    def opened(self, connection: Closable, descriptor: int) -> bool:
        """Count a new one, which is in no request yet; False when there is no place for it, and
        then it is not counted."""
        scarce = descriptor >= self.descriptors - RESERVED
        if self._open >= self.most or scarce:
            if not self._idle:
                return False
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            self.evicted += 1
            oldest.evict()
        self._open += 1
        self._idle[connection] = None
        return True

    def closed(self, connection: Closable) -> None:
        self._open -= 1
        self._idle.pop(connection, None)

    def busy(self, connection: Closable) -> None:
        """A request has begun on it."""
        self._idle.pop(connection, None)

    def idle(self, connection: Closable) -> None:
        """It has been answered."""
        self._idle[connection] = None


def raise_descriptor_limit() -> None:
    """As many descriptors as the system lets this process have without asking anybody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptor_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 2**20


OPEN = Connections(descriptor_limit())  # descriptors belong to the process, as this does
