"""Every HTTP connection of this process, and which of them are idle.

A connection costs a descriptor, and a stranger may open as many as they like. Above a share of the
process's limit, each new connection closes the one that has been idle for about the longest: silent
ones, half a head, idle keep-alive. If none is idle, one that serves a stranger is closed. A
connection in a request whose caller is known is never closed for this.

A client that sends its next request on a kept connection just as it is closed sees a reset. So
before the limit is reached, responses announce that their connection will close (``is_scarce``), a
new connection gets time to send its request, and one with an unread request is closed after all
others: a busy process accepts many connections before it reads from any.
"""

import itertools
import resource
from typing import Protocol

HTTP_SHARE = 0.5  # of the descriptors; the rest is for gRPC, Triton, Redis and files
RESERVED = 16  # descriptors below the limit, whatever holds the others: for the next callers
SCARCE = 0.75  # of HTTP's connections: above it none is kept alive for another request
EXAMINED = 1000  # connections examined in search of one that can be closed
POLLED = 100  # of them are checked for unread data


class Closable(Protocol):
    was_used: bool  # set when it is opened or a request starts on it, and reset here

    def is_busy(self) -> bool:
        """Whether a request is in progress on it."""

    def has_unread(self) -> bool:
        """Whether it has data that was not read yet, which may be a request."""

    def serves_stranger(self) -> bool:
        """Whether the request in progress has no known caller."""

    def evict(self) -> None:
        """Close at once and drop unsent bytes."""


class Connections:
    """At most ``most`` simultaneous HTTP connections, of the process's ``descriptors``."""

    def __init__(self, descriptors: int) -> None:
        self.descriptors = descriptors
        self.most = max(8, int(descriptors * HTTP_SHARE))
        self.evicted = 0
        self._open: dict[Closable, None] = {}  # roughly in the order of their last use

    def __len__(self) -> int:
        return len(self._open)

    @property
    def is_scarce(self) -> bool:
        """Whether so few are left that no connection should be kept alive."""
        return len(self._open) > SCARCE * self.most

    def opened(self, connection: Closable, descriptor: int) -> bool:
        """Count a new connection, which is in no request yet. False, without counting it, if there
        is no room for it."""
        scarce = descriptor >= self.descriptors - RESERVED
        if (len(self._open) >= self.most or scarce) and not self._evict():
            return False
        connection.was_used = True  # it is about to send a request: older silent ones go first
        self._open[connection] = None
        return True

    def closed(self, connection: Closable) -> None:
        self._open.pop(connection, None)

    def _evict(self) -> bool:
        """Close the first connection that is idle and was not used since it was last examined (so
        a request costs no more than setting a flag). If all were used, the first idle one; last of
        all, one with unread data."""
        examined: dict[Closable, None] = {}
        for _ in range(min(2 * len(self._open), EXAMINED)):
            oldest = next(iter(self._open))
            del self._open[oldest]
            self._open[oldest] = None
            if not oldest.was_used and not oldest.is_busy() and not oldest.has_unread():
                return self._end(oldest)
            oldest.was_used = False
            examined[oldest] = None
        idle_ones = (connection for connection in examined if not connection.is_busy())
        idle = list(itertools.islice(idle_ones, POLLED))
        silent = next((connection for connection in idle if not connection.has_unread()), None)
        if silent:
            return self._end(silent)
        return self._evict_stranger() or (bool(idle) and self._end(idle[0]))

    def _evict_stranger(self) -> bool:
        """Close the first connection that serves a stranger, such as a public page that its client
        does not read."""
        for connection in itertools.islice(self._open, EXAMINED):
            if connection.is_busy() and connection.serves_stranger():
                return self._end(connection)
        return False

    def _end(self, connection: Closable) -> bool:
        del self._open[connection]
        self.evicted += 1
        connection.evict()
        return True


def raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors to the hard limit, which needs no privilege."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptor_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 2**20


OPEN = Connections(descriptor_limit())  # one per process, as the descriptors are
