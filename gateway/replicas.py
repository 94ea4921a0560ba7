"""The Triton servers behind us, and which of them gets the next request."""

import asyncio
from collections.abc import Callable, Sequence

from gateway.errors import NoCapacity
from gateway.upstream import Upstream


class Replica:
    """One Triton server and the number of requests that it is working on for us.

    As a context it is a permit: the block is one of those requests.
    """

    def __init__(self, place: str, upstream: Upstream) -> None:
        self.place, self.upstream = place, upstream
        self.inflight = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def __enter__(self) -> Upstream:
        self.inflight += 1
        self.idle.clear()
        return self.upstream

    def __exit__(self, *error: object) -> None:
        self.inflight -= 1
        if not self.inflight:
            self.idle.set()


class ReplicaPool:
    """Permits to talk to a replica. There is no queue here: a full pool refuses at once."""

    def __init__(self, connect: Callable[[str], Upstream], max_inflight: int) -> None:
        self._connect, self._max_inflight = connect, max_inflight
        self.replicas: list[Replica] = []
        self._retiring: set[asyncio.Task[None]] = set()

    def adopt(self, addresses: Sequence[str]) -> None:
        """Talk to these from now on; what is under way elsewhere ends where it is."""
        known = {replica.place: replica for replica in self.replicas}
        self.replicas = [
            known.pop(each) if each in known else Replica(each, self._connect(each))
            for each in addresses
        ]
        for replica in known.values():
            task = asyncio.ensure_future(_retire(replica))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def permit(self) -> Replica:
        """The least busy replica, to be entered at once; NoCapacity when all are full."""
        replica = min(self.replicas, key=lambda replica: replica.inflight)
        if replica.inflight >= self._max_inflight:
            raise NoCapacity("every replica is busy: try again shortly", retry_after_s=1)
        return replica

    def again(self, upstream: Upstream) -> Replica:
        """One more permit of the replica where a stream is; NoCapacity when it is full or gone."""
        replica = next((each for each in self.replicas if each.upstream is upstream), None)
        if replica is None or replica.inflight >= self._max_inflight:
            raise NoCapacity("the replica of this stream is busy: try again", retry_after_s=1)
        return replica

    @property
    def first(self) -> Upstream:
        """The replica that is asked what there is to serve."""
        return self.replicas[0].upstream

    async def close(self) -> None:
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*(replica.upstream.close() for replica in self.replicas))


async def _retire(replica: Replica) -> None:
    """Close the connection once its last request has its answer."""
    await replica.idle.wait()
    await replica.upstream.close()
