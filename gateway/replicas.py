"""The Triton servers behind us, and which of them gets the next request."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from gateway.errors import NoCapacity
from gateway.upstream import Upstream


class Replica:
    """One Triton server and the number of requests that it is working on for us."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.inflight = 0


class ReplicaPool:
    """Permits to talk to a replica. There is no queue here: a full pool refuses at once."""

    def __init__(self, replicas: Sequence[Replica], max_inflight: int) -> None:
        self._replicas, self._max_inflight = replicas, max_inflight

    @contextlib.contextmanager
    def permit(self) -> Iterator[Upstream]:
        """The least busy replica, held until the block ends; NoCapacity when all are full."""
        replica = least_outstanding(self._replicas)
        if replica.inflight >= self._max_inflight:
            raise NoCapacity("every replica is busy: try again shortly", retry_after_s=1)
        replica.inflight += 1
        try:
            yield replica.upstream
        finally:
            replica.inflight -= 1

    @property
    def first(self) -> Upstream:
        """The replica that is asked what there is to serve."""
        return self._replicas[0].upstream

    async def close(self) -> None:
        await asyncio.gather(*(replica.upstream.close() for replica in self._replicas))


def least_outstanding(replicas: Sequence[Replica]) -> Replica:
    return min(replicas, key=lambda replica: replica.inflight)
