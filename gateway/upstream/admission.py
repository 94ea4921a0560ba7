"""How many requests for a model are sent to Triton at a time, and whose is the next.

Triton's own queue is first come, first served: a tenant that sends fifty times as much has fifty
times as much before everybody else. So requests wait here, and tenants take turns: the next request
is that of the tenant whose requests have been at the model for the least time lately, divided by
its ``weight`` in ``gateway.toml``.

How many are sent at a time follows from what Triton itself measured: by Little's law, requests in
flight are throughput times the time that each spends there, so with more of them than keep the
instances busy only the queue grows. The ``Limit`` shrinks while a request waits in Triton for
longer than its ``Waiting`` says, and grows while it waits for less and the limit holds others back.
It starts high and does not come from the latency of a quiet hour, so nothing is refused while it is
found, and no bad hour is taken for the rule. It grows by steps and shrinks by factors, so the
limits of several processes come to be alike.

``TurnQueue`` is what waits and whose turn is next; ``FairQueue`` is that of models whose own queue
Triton measures. Language models have another (``text_admission``).
"""

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.errors import DeadlineExceeded, NoCapacity, QuotaExceeded

START = 64  # requests for a model at a time, for each replica, before anything was measured
LEAST = 2  # for each replica
QUEUE_FLOOR_S = 0.001  # a queue shorter than this is none
GROWTH = 1 / 16  # of the limit in a step, and at least 1
MOST_WAITING = 1024  # for a model
NEW_SHARE = 0.2  # of the newest value in a moving average
MEASURE_S = 0.5  # how often the limits should be adjusted
FIRST_S = 0.01  # what a turn is thought to take before one has ended
# How long a request is worked on is remembered for so long, and for so many times as long.
WORK_KNOWN_S, WORK_KNOWN_TIMES = 5.0, 3.0


class Waiting(NamedTuple):
    """How long a request may wait in Triton: this share of the time that it is worked on, and the
    ``delay_s`` for which Triton waits on purpose, to gather a batch."""

    share: float
    delay_s: float = 0.0

    def most_s(self, compute_s: float) -> float:
        return max(self.share * compute_s, QUEUE_FLOOR_S) + self.delay_s


ONE_BY_ONE = Waiting(0.45)
# What arrives while a batch is worked on waits for up to the whole of its time, however small the
# batches are; for longer only if they are as large as they may be, and more wait than one of them.
BATCH_SHARE = 1.2


class Limit:
    """How many requests for one model are sent at a time."""

    def __init__(self, replicas: int) -> None:
        self.least = LEAST * replicas
        self.value = START * replicas

    def adjust(self, peak: int, queue_s: float, compute_s: float, waiting: Waiting) -> None:
        """``peak`` requests were in flight since the last time, and each waited and was worked on
        for so long on average."""
        if queue_s + compute_s <= 0:
            return
        most_s = waiting.most_s(compute_s)
        if queue_s > most_s:
            affordable = peak * (most_s + compute_s) / (queue_s + compute_s)
            self.value = max(self.least, min(self.value, round(affordable)))
        elif peak >= self.value:
            self.value += max(1, int(self.value * GROWTH))


@dataclass(eq=False)
class Tenant:
    """The requests of one tenant that wait for one model."""

    weight: float
    # What its requests had of the model (seconds, or tokens), divided by its weight, on the clock
    # that all tenants share.
    served: float = 0.0
    turn_s: float = 0.0  # how long one of its turns takes, a moving average; 0.0: not known
    waiting: deque["Waiter"] = field(default_factory=deque)
    # Of a language model only: its texts under way; those of them without a first token, the oldest
    # first, and how many of these there may be (0.0: not known).
    under_way: int = 0
    unbegun: dict["Waiter", None] = field(default_factory=dict)
    most_unbegun: float = 0.0


@dataclass(eq=False)
class Waiter:
    """A request that waits for its turn, or has it. ``tokens``: about how many a text to continue
    takes, in so many ``sequences`` at a time; ``is_stream``: it has a first response long before
    its last."""

    tenant: Tenant
    granted: "asyncio.Future[None]"
    tokens: int = 0
    is_stream: bool = False
    sequences: int = 1
    charged: float = 0.0
    granted_at: float = 0.0
    until: float = math.inf  # when its deadline passes; inf: it has begun, and is not refused


class Turn:
    """The right to have one request at the model; leave it when Triton has answered."""

    __slots__ = ("_is_lent", "_queue", "_waiter")

    def __init__(self, queue: "TurnQueue | None", waiter: Waiter | None = None) -> None:
        """``queue`` is None for a request that needs no turn."""
        self._queue, self._waiter, self._is_lent = queue, waiter, False

    def __enter__(self) -> "Turn":
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        queue, self._queue = self._queue, None
        if queue is not None and not self._is_lent:
            queue.leave(self._waiter)

    async def pass_on(self, tenant: str, weight: float, timeout_s: float) -> None:
        """Between two parts of a request: if others wait, they go first. Raises DeadlineExceeded if
        its next turn does not come in time; what has begun is not refused."""
        queue = self._queue
        if queue is None or not queue.waiting:
            return
        self.leave()
        turn = await queue.enter(tenant, weight, timeout_s, has_begun=True)
        self._queue, self._waiter = queue, turn._waiter

    def has_responded(self) -> None:
        """The first response of a stream has come."""
        if self._queue is not None and self._waiter is not None:
            self._queue.has_responded(self._waiter)

    def lend(self) -> None:
        """Let another request have it, while the caller of this one reads nothing."""
        if self._queue is not None and not self._is_lent:
            self._is_lent = True
            self._queue.lend(self._waiter, 1)

    def take_back(self) -> None:
        """Have it again, whatever the limit says by now."""
        if self._queue is not None and self._is_lent:
            self._queue.lend(self._waiter, -1)
        self._is_lent = False


class TurnQueue(ABC):
    """The requests for one model: those that have their turn, and those that wait for it."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.in_flight = 0
        self.waiting = 0
        self._time = clock
        self._tenants: dict[str, Tenant] = {}  # those that wait, and those that did lately
        self._clock = 0.0  # what the tenant whose turn was last had before it
        self._left_at, self._interval_s = 0.0, 0.0  # between two that left, while others waited
        self._is_closed = False

    @property
    @abstractmethod
    def most_at_once(self) -> int:
        """How many requests may have their turn at a time."""

    @abstractmethod
    def _next(self) -> Waiter | None:
        """Whose turn is now; None if everybody has to wait. Called only while somebody waits."""

    @abstractmethod
    def _granted(self, waiter: Waiter) -> None:
        """Count the turn that it gets now, and charge its tenant for it."""

    @abstractmethod
    def _charge(self, tenant: Tenant) -> float:
        """What a turn of this tenant is thought to cost it."""

    def _least_s(self, tenant: Tenant) -> float:
        """How long the model works on a request of this tenant's at least; 0.0 if that is not
        known."""
        return 0.0

    @abstractmethod
    def leave(self, waiter: Waiter | None = None) -> None:
        """A request has its answer; ``waiter`` is there if it waited for its turn."""

    @abstractmethod
    def has_responded(self, waiter: Waiter) -> None:
        """The first response of a stream has come."""

    def is_full(self, tenant: str, weight: float, timeout_s: float) -> bool:
        """Whether ``enter`` would raise NoCapacity."""
        if not self.waiting:
            return False
        own = self._tenants.get(tenant) or Tenant(weight, self._clock)
        try:
            self._refuse_late(own, timeout_s)
            return self.waiting >= MOST_WAITING and len(own.waiting) == self.waiting
        except NoCapacity:
            return True
        except QuotaExceeded:
            return False

    async def enter(
        self,
        tenant: str,
        weight: float,
        timeout_s: float,
        *,
        has_begun: bool = False,
        tokens: int = 0,
        is_stream: bool = False,
        sequences: int = 1,
    ) -> Turn:
        """Wait for a turn.

        Raises QuotaExceeded if this tenant has more requests waiting than is its share of a full
        queue, NoCapacity if the queue is full of its requests alone or its turn would come, or has
        come, too late to be answered within ``timeout_s``, and DeadlineExceeded if it has not come
        by then. A request that ``has_begun`` is not refused, but if the queue is closed, which
        raises NoCapacity too.
        """
        if self._is_closed:
            raise _stopping()
        own = self._tenants.get(tenant)
        if own is None:
            self._tenants[tenant] = own = Tenant(weight, self._clock)
        own.weight = weight
        if not own.waiting:  # what it did not use before does not make it the first for long
            own.served = max(own.served, self._clock)
        if not has_begun:
            self._refuse_late(own, timeout_s)
            if self.waiting >= MOST_WAITING:
                self._make_room(own)
        granted = asyncio.get_running_loop().create_future()
        waiter = Waiter(own, granted, tokens, is_stream, sequences)
        if not has_begun:
            waiter.until = self._time() + timeout_s
        own.waiting.append(waiter)
        self.waiting += 1
        self.fill()
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.granted
        except TimeoutError:
            self._give_up(waiter)
            raise DeadlineExceeded(
                "the model did not answer in time: send less, or try again later"
            ) from None
        except BaseException:
            self._give_up(waiter)
            raise
        return Turn(self, waiter)

    def lend(self, waiter: Waiter | None, count: int) -> None:
        """Let so many others in, instead of some that have their turn (``waiter`` is one of them if
        it waited); negative: take it back."""
        self.in_flight -= count
        self.fill()

    def fill(self) -> None:
        """Give those who wait their turns, as far as there is room. Who could not be answered any
        more is refused: the model would work for nobody, and the next would be as late."""
        while self.waiting and (waiter := self._next()) is not None:
            own = waiter.tenant
            own.waiting.popleft()
            self.waiting -= 1
            if waiter.granted.done():  # its task was cancelled just now
                continue
            if waiter.until - self._time() < self._least_s(own):
                refusal = self._refusal(own, (self.waiting + 1) * self._interval_s)
                waiter.granted.set_exception(refusal)
                continue
            self._clock = max(self._clock, own.served)
            self.in_flight += 1
            self._granted(waiter)
            waiter.granted.set_result(None)

    def close(self) -> None:
        """Refuse all that wait, and all that would have to: the gateway is stopping."""
        self._is_closed = True
        for tenant in self._tenants.values():
            for waiter in tenant.waiting:
                if not waiter.granted.done():
                    waiter.granted.set_exception(_stopping())
            self.waiting -= len(tenant.waiting)
            tenant.waiting.clear()

    def forget_idle(self) -> None:
        """Forget the tenants that have no request here, and would be treated as new ones are."""
        self._tenants = {
            name: tenant
            for name, tenant in self._tenants.items()
            if tenant.waiting or tenant.under_way or tenant.served > self._clock
        }

    def _first(self) -> Tenant:
        """Of the tenants that wait, the one that had the least."""
        return min(
            (tenant for tenant in self._tenants.values() if tenant.waiting),
            key=lambda tenant: tenant.served,
        )

    def _left(self) -> None:
        """Measure how often one leaves while others wait."""
        now = self._time()
        if self.waiting and self._left_at:
            self._interval_s = moved(self._interval_s, now - self._left_at)
        self._left_at = now if self.waiting else 0.0

    def _refuse_late(self, own: Tenant, timeout_s: float) -> None:
        """Refuse at once what would only be refused later."""
        mine = own.served + len(own.waiting) * self._charge(own)
        before = len(own.waiting)
        for other in self._tenants.values():
            if other is not own and other.waiting and other.served <= mine:
                ahead = int((mine - other.served) / self._charge(other)) + 1
                before += min(len(other.waiting), ahead)
        expected_s = before * self._interval_s
        if expected_s + self._least_s(own) > timeout_s:
            raise self._refusal(own, expected_s)

    def _make_room(self, own: Tenant) -> None:
        expected_s = self.waiting * self._interval_s
        longest = max(self._tenants.values(), key=lambda tenant: len(tenant.waiting))
        if len(longest.waiting) <= len(own.waiting) + 1:
            raise self._refusal(own, expected_s)
        waiter = longest.waiting.pop()
        self.waiting -= 1
        if not waiter.granted.done():
            waiter.granted.set_exception(_used_up(expected_s))

    def _refusal(self, own: Tenant, expected_s: float) -> NoCapacity | QuotaExceeded:
        if any(tenant.waiting and tenant is not own for tenant in self._tenants.values()):
            return _used_up(expected_s)
        return NoCapacity(
            "the model is busy: try again shortly", retry_after_s=_retry_after_s(expected_s)
        )

    def _give_up(self, waiter: Waiter) -> None:
        """It leaves the queue, or gives back the turn that it was given at the same moment."""
        granted = waiter.granted
        if waiter in waiter.tenant.waiting:
            waiter.tenant.waiting.remove(waiter)
            self.waiting -= 1
            self.fill()  # it may have been one that had no room, before others that have
        elif granted.done() and not granted.cancelled() and not granted.exception():
            self.leave(waiter)


class FairQueue(TurnQueue):
    """The requests for a model whose own queue Triton measures."""

    def __init__(self, replicas: int, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(clock)
        self.limit = Limit(replicas)
        self.peak = 0  # since ``measured``
        self._turn_s = 0.0  # how long one takes, a moving average
        # How long Triton has a request that is well, as measured last, and when that was.
        self._work_s, self._measured_at = 0.0, -math.inf

    @property
    def most_at_once(self) -> int:
        return self.limit.value

    def try_enter(self) -> Turn | None:
        """A turn, if nobody waits and the limit is not reached."""
        if self.waiting or self.in_flight >= self.limit.value:
            return None
        self.in_flight += 1
        if self.in_flight > self.peak:
            self.peak = self.in_flight
        return Turn(self)

    def leave(self, waiter: Waiter | None = None) -> None:
        if not self.waiting and waiter is None:  # nobody is held up: nothing to measure
            self._left_at = 0.0
            self.in_flight -= 1
            return
        self._left()
        if waiter is not None:
            took_s = self._time() - waiter.granted_at
            self._turn_s = moved(self._turn_s, took_s)
            waiter.tenant.turn_s = moved(waiter.tenant.turn_s, took_s)
            waiter.tenant.served += took_s / waiter.tenant.weight - waiter.charged
        self.in_flight -= 1
        self.fill()

    def has_responded(self, waiter: Waiter) -> None:
        pass  # what counts is when Triton has answered

    def measured(self, replicas: int, queue_s: float, compute_s: float, waiting: Waiting) -> None:
        """What so many replicas measured since the last time: seconds for each request."""
        if compute_s > 0:  # a longer queue is about to be shortened
            self._work_s = compute_s + min(queue_s, waiting.most_s(compute_s))
            self._measured_at = self._time()
        self.limit.least = LEAST * replicas
        self.limit.adjust(self.peak, queue_s, compute_s, waiting)
        self.peak = self.in_flight
        self.forget_idle()
        self.fill()

    def _least_s(self, tenant: Tenant) -> float:
        """What Triton measured is the mean of all tenants: beside others, one may send much shorter
        requests, and what is not known of its own refuses nothing."""
        known_s = max(WORK_KNOWN_S, WORK_KNOWN_TIMES * self._work_s)
        is_known = self._time() - self._measured_at < known_s
        if not is_known:
            return 0.0
        return self._work_s if len(self._tenants) <= 1 else min(self._work_s, tenant.turn_s)

    def _next(self) -> Waiter | None:
        return self._first().waiting[0] if self.in_flight < self.limit.value else None

    def _granted(self, waiter: Waiter) -> None:
        # What it takes is known when it leaves.
        waiter.charged, waiter.granted_at = self._charge(waiter.tenant), self._time()
        waiter.tenant.served += waiter.charged
        self.peak = max(self.peak, self.in_flight)

    def _charge(self, tenant: Tenant) -> float:
        return (self._turn_s or FIRST_S) / tenant.weight


def _stopping() -> NoCapacity:
    return NoCapacity("the gateway is stopping: send it again, to another one", retry_after_s=1)


def _used_up(expected_s: float) -> QuotaExceeded:
    return QuotaExceeded(
        "your share of the model is used up while others wait for it: try again later",
        retry_after_s=_retry_after_s(expected_s),
    )


def _retry_after_s(expected_s: float) -> int:
    return max(1, math.ceil(min(expected_s, 60)))


def moved(average: float, newest: float) -> float:
    """A moving average with its newest value; ``average`` is 0.0 before the first."""
    return average + NEW_SHARE * (newest - average) if average else newest
