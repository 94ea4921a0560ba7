"""Every HTTP connection of this process, and which of them is in no request.

A connection costs a descriptor, and a stranger may open as many as they like. Above a share of what
the process may open, the connection that has been in no request for about longest is closed for
each new one: silent ones, half a head, idle keep-alive. Where there is none, one on which a
stranger is being answered. One whose caller is known is never closed for that while in a request.
"""

import itertools
import resource
from typing import Protocol

HTTP_SHARE = 0.5  # of the descriptors; the rest is for gRPC, Triton, Redis and files
RESERVED = 16  # below the limit, whoever holds the others: there must be one for the next caller
LOOKED_AT = 1000  # connections, for one that can be closed


class Closable(Protocol):
    was_used: bool  # set when a request begins on it, and taken back here

    def is_busy(self) -> bool:
        """Whether a request is under way on it."""

    def is_strangers(self) -> bool:
        """Whether the request under way has no known caller."""

    def evict(self) -> None:
        """Close at once, unsent bytes included."""


class Connections:
    """``most`` HTTP connections at the same time, of ``descriptors`` of the process."""

    def __init__(self, descriptors: int) -> None:
        self.descriptors = descriptors
        self.most = max(8, int(descriptors * HTTP_SHARE))
        self.evicted = 0
        self._open: dict[Closable, None] = {}  # about in the order in which they were used last

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, connection: Closable, descriptor: int) -> bool:
        """Count a new one, which is in no request yet; False when there is no place for it, and
        then it is not counted."""
        scarce = descriptor >= self.descriptors - RESERVED
        if (len(self._open) >= self.most or scarce) and not self._evict():
            return False
        self._open[connection] = None
        return True

    def closed(self, connection: Closable) -> None:
        self._open.pop(connection, None)

    def _evict(self) -> bool:
        """The first that is not busy and was not used since it was looked at before: so a request
        costs no more than setting a flag."""
        for _ in range(min(2 * len(self._open), LOOKED_AT)):
            oldest = next(iter(self._open))
            del self._open[oldest]
            if not oldest.was_used and not oldest.is_busy():
                self.evicted += 1
                oldest.evict()
                return True
            oldest.was_used = False
            self._open[oldest] = None
        return self._evict_stranger()

    def _evict_stranger(self) -> bool:
        """The first that is busy with a request of nobody's: open pages that are not read."""
        for oldest in itertools.islice(self._open, LOOKED_AT):
            if oldest.is_busy() and oldest.is_strangers():
                del self._open[oldest]
                self.evicted += 1
                oldest.evict()
                return True
        return False


def raise_descriptor_limit() -> None:
    """As many descriptors as the system lets this process have without asking anybody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptor_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 2**20


OPEN = Connections(descriptor_limit())  # descriptors belong to the process, as this does
