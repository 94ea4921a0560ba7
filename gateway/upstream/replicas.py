"""The Triton servers behind us: what is known of each, and permits to ask one.

Which one is asked is decided in ``balancing``. What is known comes from three signs. The state of
the gRPC connection is looked at for every request: a server that was killed closes its connections,
and is not asked from then on. An active check twice a second finds a server that hangs, and one
that is back. And failures of requests count as load for a while.

**Load is not death:** a server is called hung after two checks in a row without an answer, and only
if no request had an answer from it since the first of them began.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    NoCapacity,
    TooLarge,
    UpstreamError,
)
from gateway.upstream.balancing import Health, ReplicaState, candidates, choose, preferred
from gateway.upstream.server import Upstream

log = logging.getLogger("gateway")
CHECK_S = 0.5  # how often ``ReplicaPool.check`` should be called
CHECK_TIMEOUT_S = 1.0
LATE_CHECKS = 2  # so many in a row, and no answer to anything meanwhile: it hangs
FAILURE_S = 5.0  # after which a failure counts a third of what it did
_DOWN = Health.DOWN
# TooLarge is an answer, but one that fails: for want of memory, it may be.
_FAILURES, _ANSWERS = (NoCapacity, UpstreamError, TooLarge), (InvalidRequest, TooLarge)
_BUSY = "every replica is busy: try again shortly"
_NOBODY = "no server can take this now: try again shortly"


class Replica:
    """One Triton server, what is known of it, and what it is working on for us."""

    def __init__(self, place: str, upstream: Upstream) -> None:
        self.place, self.upstream = place, upstream
        self.inflight = 0
        self.aside = 0  # requests that wait for their callers to read: they are not in ``inflight``
        self.idle = asyncio.Event()
        self.idle.set()
        self.fault = ""  # what the last active check found
        self.versions: Mapping[str, tuple[str, ...]] | None = None  # of its index; None: not read
        self.probes: dict[str, str] = {}  # pipeline -> '' or what its golden probe found here
        self.answered: dict[str, float] = {}  # model -> when it last answered, monotonic s
        self.last_answer = 0.0  # to anything, monotonic s
        self._late_since, self._late = 0.0, 0
        self._failures, self._failed_at = 0.0, 0.0

    @property
    def address(self) -> str:
        """HOST:GRPC_PORT: the same for every gateway, whether it has the HTTP port or not."""
        return self.place.partition("/")[0]

    @property
    def health(self) -> Health:
        return _DOWN if self.fault else self.upstream.health()

    @property
    def reason(self) -> str:
        """Why it is not asked, or '' when it is."""
        if self.fault:
            return self.fault
        reasons = {Health.DOWN: "cannot be connected to", Health.UNKNOWN: "is being connected to"}
        return reasons.get(self.upstream.health(), "")

    def serves(self, model: str, version: str = "") -> bool:
        """Whether it has the model (and version) ready; without a name, or before its index was
        read, nothing speaks against it."""
        if not model or self.versions is None:
            return True
        found = self.versions.get(model)
        return found is not None and (not version or version in found)

    def state(self, model: str, version: str, now: float) -> ReplicaState:
        failures = round(self._decayed(now)) if self._failures else 0
        serves, is_right = self.serves(model, version), not self.probes.get(model)
        return ReplicaState(self.health, self.inflight, failures, serves, is_right)

    def permit(self, model: str = "") -> "Permit":
        """A permit that is given however busy it is, and whatever its health."""
        return Permit(self, model)

    async def check(self) -> None:
        """Ask whether it is there; logs when that has changed."""
        before, fault = self.fault, await self._checked(time.monotonic())
        if before and not fault:
            fault = await self._models_read()
        self.fault = fault
        if self.fault and not before:
            log.warning("replica %s is not asked: it %s", self.place, self.fault)
        elif before and not self.fault:
            log.info("replica %s is asked again", self.place)

    async def _checked(self, began: float) -> str:
        try:
            is_live = await self.upstream.is_live(CHECK_TIMEOUT_S)
        except DeadlineExceeded:
            if not self._late:
                self._late_since = began
            self._late += 1
            has_answered = self.last_answer >= self._late_since
            is_hung = self._late >= LATE_CHECKS and not has_answered
            return "does not answer" if is_hung or self.fault else ""
        except NoCapacity:
            self._late = 0
            return "cannot be reached"
        except GatewayError:
            is_live = True  # it does not know the question, but it answers
        self._late = 0
        return "" if is_live else "is shutting down"

    async def _models_read(self) -> str:
        """One that is back may have been started anew, and not have loaded its models yet."""
        try:
            self.versions = await self.upstream.ready_versions()
        except GatewayError:
            return "does not say what it serves"
        return ""

    def ended(self, model: str, error: BaseException | None, sent: float | None = None) -> None:
        """A request has ended; what that says of this server is kept. One that was late counts as
        a failure only when the model answered nothing here since it was ``sent``: load is not
        death."""
        now = time.monotonic()
        is_silent = sent is not None and self.answered.get(model, 0.0) <= sent
        if isinstance(error, _FAILURES) or (is_silent and isinstance(error, DeadlineExceeded)):
            self._failures = self._decayed(now) + 1
            self._failed_at = now
        if error is None or isinstance(error, _ANSWERS):
            self.last_answer = self.answered[model] = now

    def _decayed(self, now: float) -> float:
        return self._failures * math.exp((self._failed_at - now) / FAILURE_S)


class Permit:
    """The right to one request to a replica, which counts from entering to leaving it."""

    __slots__ = ("_model", "_sent", "replica")

    def __init__(self, replica: Replica, model: str) -> None:
        self.replica, self._model, self._sent = replica, model, 0.0

    @property
    def inflight(self) -> int:
        return self.replica.inflight

    def __enter__(self) -> Upstream:
        replica = self.replica
        replica.inflight += 1
        replica.idle.clear()
        self._sent = time.monotonic()
        return replica.upstream

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        replica = self.replica
        replica.inflight -= 1
        if not replica.inflight and not replica.aside:
            replica.idle.set()
        replica.ended(self._model, error, self._sent)


class ReplicaPool:
    """Permits to talk to a replica. There is no queue here: a full pool refuses at once."""

    def __init__(
        self,
        connect: Callable[[str], Upstream],
        max_inflight: int,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._connect, self._max_inflight, self._draw = connect, max_inflight, draw
        self.replicas: list[Replica] = []
        self._retiring: set[asyncio.Task[None]] = set()

    def apply(self, addresses: Sequence[str]) -> None:
        """Talk to these from now on; what is under way elsewhere ends where it is."""
        known = {replica.place: replica for replica in self.replicas}
        self.replicas = [
            known.pop(each) if each in known else Replica(each, self._connect(each))
            for each in dict.fromkeys(addresses)
        ]
        for replica in known.values():
            task = asyncio.ensure_future(_retire(replica))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def permit(self, model: str = "", version: str = "", at: Upstream | None = None) -> Permit:
        """To ask the least busy healthy replica that serves the model; to be entered at once.

        The one ``at`` which a stream is comes first, as long as it is up and serves the model.
        NoCapacity when all of them are full, and when nobody is healthy: at once, since a dead
        server would refuse and a hung one would keep the caller until its deadline.
        """
        if at is not None:
            replica = next((each for each in self.replicas if each.upstream is at), None)
            if replica and replica.health is Health.UP and replica.serves(model, version):
                if replica.inflight >= self._max_inflight:
                    raise NoCapacity(_BUSY, retry_after_s=1)
                return Permit(replica, model)
        if len(self.replicas) == 1:  # there is nothing to choose: the hot path of most gateways
            only = self.replicas[0]
            if only.health and only.inflight < self._max_inflight and only.serves(model, version):
                return Permit(only, model)
        now = time.monotonic()
        states = [replica.state(model, version, now) for replica in self.replicas]
        index = choose(states, self._max_inflight, self._draw())
        if index is not None:
            return Permit(self.replicas[index], model)
        if candidates(states):
            raise NoCapacity(_BUSY, retry_after_s=1)
        raise NoCapacity(_NOBODY, retry_after_s=1)

    @contextmanager
    def set_aside(self, upstream: Upstream | None, count: int) -> Iterator[None]:
        """Around the time in which so many of the requests that have permits for it wait for their
        caller to read: others may have the permits. The caller has them back without asking."""
        replica = next((each for each in self.replicas if each.upstream is upstream), None)
        if replica is None:  # it is listed no more, and nobody else asks it
            yield
            return
        replica.inflight -= count
        replica.aside += count
        try:
            yield
        finally:
            replica.inflight += count
            replica.aside -= count

    def home(
        self, sequence: int | str, model: str, version: str, *, begun_at: str, starts: bool
    ) -> Replica:
        """The replica that a sequence's request has to go to.

        ``begun_at`` is the address where it was begun, as far as this process knows ('' if not).
        A sequence that starts (and whose place will be remembered) takes the first healthy replica
        in its own order; any other request goes where it was begun, or else to the first in that
        order, healthy or not: UpstreamError when that one is gone, NoCapacity when it is full or,
        of a start, when nobody is healthy.
        """
        serving = {each.address: each for each in self.replicas if each.serves(model, version)}
        order = [serving[address] for address in preferred(sequence, serving)]
        if starts:
            order.sort(key=lambda replica: replica.health, reverse=True)  # stable
        elif begun_at:
            order = [replica for replica in self.replicas if replica.address == begun_at]
        if not order or (starts and not order[0].health):
            raise lost() if begun_at and not starts else NoCapacity(_NOBODY, retry_after_s=1)
        replica = order[0]
        if not replica.health:
            raise lost()
        if replica.inflight >= self._max_inflight:
            raise NoCapacity(
                "the replica of this sequence is busy: try again shortly", retry_after_s=1
            )
        return replica

    async def describe(self, method: str, model: str = "", version: str = "") -> Any:
        """As ``Upstream.describe``, of the first replica listed that answers.

        Not of the least busy: statistics are each replica's own, and must not jump.
        """
        fault: GatewayError = NoCapacity(_NOBODY, retry_after_s=1)
        asked = [each for each in self.replicas if each.serves(model, version) and each.health]
        for replica in sorted(asked, key=lambda each: each.health, reverse=True):
            try:
                return await replica.upstream.describe(method, model, version)
            except (NoCapacity, DeadlineExceeded) as error:
                fault = error
        raise fault

    async def check(self) -> None:
        """Ask every replica, at the same time, whether it is there; takes CHECK_TIMEOUT_S at most.
        To be called every CHECK_S."""
        await asyncio.gather(*(replica.check() for replica in self.replicas))

    async def close(self) -> None:
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*(replica.upstream.close() for replica in self.replicas))


def lost() -> UpstreamError:
    """Of a sequence whose server is gone: no other server knows what it was told until now."""
    return UpstreamError("the server of this sequence is gone: start the sequence anew")


async def _retire(replica: Replica) -> None:
    """Close the connection once its last request has its answer."""
    await replica.idle.wait()
    await replica.upstream.close()
