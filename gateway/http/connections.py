"""Every HTTP connection of this process, and which of them is in no request.

A connection costs a descriptor, and a stranger may open as many as they like. Above a share of what
the process may open, the connection that has been in no request for about longest is closed for
each new one: silent ones, half a head, idle keep-alive. Where there is none, one on which a
stranger is being answered. One whose caller is known is never closed for that while in a request.

A client that sends its next request on a kept connection at the moment at which it is closed sees a
reset. So before there is no place left, answers say that their connection is closed after them
(``is_scarce``), a new one is given time to say what it wants, and one with a request that was not
read yet goes after all others: a busy process accepts many before it reads of any.
"""

import itertools
import resource
from typing import Protocol

HTTP_SHARE = 0.5  # of the descriptors; the rest is for gRPC, Triton, Redis and files
RESERVED = 16  # below the limit, whoever holds the others: there must be one for the next caller
SCARCE = 0.75  # of HTTP's connections: from here on none is kept for another request
LOOKED_AT = 1000  # connections, for one that can be closed
ASKED = 100  # of them, whether something came on them


class Closable(Protocol):
    was_used: bool  # set when it is opened or a request begins on it, and taken back here

    def is_busy(self) -> bool:
        """Whether a request is under way on it."""

    def has_unread(self) -> bool:
        """Whether something has come on it that was not read yet: a request, it may be."""

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

    @property
    def is_scarce(self) -> bool:
        """Whether there is so little place left that no connection is to be kept idle."""
        return len(self._open) > SCARCE * self.most

    def opened(self, connection: Closable, descriptor: int) -> bool:
        """Count a new one, which is in no request yet; False when there is no place for it, and
        then it is not counted."""
        scarce = descriptor >= self.descriptors - RESERVED
        if (len(self._open) >= self.most or scarce) and not self._evict():
            return False
        connection.was_used = True  # it comes to say something: silent ones of before go first
        self._open[connection] = None
        return True

    def closed(self, connection: Closable) -> None:
        self._open.pop(connection, None)

    def _evict(self) -> bool:
        """The first that is not busy and was not used since it was looked at before: so a request
        costs no more than setting a flag. Where all were used, the first that is not busy; last
        of all one with something unread."""
        looked_at: dict[Closable, None] = {}
        for _ in range(min(2 * len(self._open), LOOKED_AT)):
            oldest = next(iter(self._open))
            del self._open[oldest]
            self._open[oldest] = None
            if not oldest.was_used and not oldest.is_busy() and not oldest.has_unread():
                return self._end(oldest)
            oldest.was_used = False
            looked_at[oldest] = None
        idle = list(itertools.islice((e for e in looked_at if not e.is_busy()), ASKED))
        if quiet := next((each for each in idle if not each.has_unread()), None):
            return self._end(quiet)
        return self._evict_stranger() or (bool(idle) and self._end(idle[0]))

    def _evict_stranger(self) -> bool:
        """The first that is busy with a request of nobody's: open pages that are not read."""
        for oldest in itertools.islice(self._open, LOOKED_AT):
            if oldest.is_busy() and oldest.is_strangers():
                return self._end(oldest)
        return False

    def _end(self, connection: Closable) -> bool:
        del self._open[connection]
        self.evicted += 1
        connection.evict()
        return True


def raise_descriptor_limit() -> None:
    """As many descriptors as the system lets this process have without asking anybody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptor_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 2**20


OPEN = Connections(descriptor_limit())  # descriptors belong to the process, as this does
