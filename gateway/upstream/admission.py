"""How many requests for a model are sent to Triton at a time, and whose is the next.

Triton's own queue is first come, first served: a tenant that sends fifty times as much has fifty
times as much before everybody else. So requests wait here, and tenants take turns: the next request
is that of the tenant that has had the least lately, by the bytes it sent, divided by its ``weight``
in ``gateway.toml``.

How many are sent at a time follows from what Triton itself measured: by Little's law, requests in
flight are throughput times the time that each spends there, so with more of them than keep the
instances busy only the queue grows. The ``Limit`` shrinks while a request waits in Triton for
longer than its ``Waiting`` says, and grows while it waits for less and the limit holds others back.
It starts high and does not come from the latency of a quiet hour, so nothing is refused while it is
found, and no bad hour is taken for the rule.
"""

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.errors import DeadlineExceeded, NoCapacity, QuotaExceeded

START = 64  # requests for a model at a time, for each replica, before anything was measured
LEAST = 2  # for each replica
QUEUE_FLOOR_S = 0.001  # a queue shorter than this is none
GROWTH = 1.25
MOST_WAITING = 1024  # for a model
NEW_SHARE = 0.2  # of the newest value in a moving average
MEASURE_S = 0.5  # how often the limits should be adjusted
SMALL_BYTES = 64  # what the smallest request counts as


class Waiting(NamedTuple):
    """How long a request may wait in Triton, as a share of the time that it is worked on: a limit
    shrinks above ``most``, and grows below ``least``."""

    most: float
    least: float


ONE_BY_ONE = Waiting(0.7, 0.35)
# What arrives while a batch is worked on waits for up to the whole of its time, however small the
# batches are; for longer only if they are as large as they may be, and more wait than one of them.
IN_BATCHES = Waiting(1.2, 1.1)


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
        most_s = max(waiting.most * compute_s, QUEUE_FLOOR_S)
        if queue_s > most_s:
            affordable = peak * (most_s + compute_s) / (queue_s + compute_s)
            self.value = max(self.least, min(self.value, math.ceil(affordable)))
        elif queue_s <= most_s * waiting.least / waiting.most and peak >= self.value:
            self.value = math.ceil(self.value * GROWTH)


@dataclass
class _Tenant:
    """The requests of one tenant that wait for one model."""

    served: float = 0.0  # the weighted bytes that it has had, on the clock that all share
    waiting: deque["_Waiter"] = field(default_factory=deque)


@dataclass(eq=False)
class _Waiter:
    cost: float
    turn: "asyncio.Future[None]"


class Turn:
    """The right to have one request at the model; leave it when Triton has answered."""

    __slots__ = ("_queue",)

    def __init__(self, queue: "FairQueue | None") -> None:
        self._queue = queue

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.leave()


class FairQueue:
    """The requests for one model: those that have their turn, and those that wait for it."""

    def __init__(self, replicas: int) -> None:
        self.limit = Limit(replicas)
        self.in_flight = 0
        self.peak = 0  # since ``measured``
        self.waiting = 0
        self._tenants: dict[str, _Tenant] = {}  # those that wait, and those that did lately
        self._clock = 0.0  # what the tenant whose turn was last had before it
        self._left_at, self._interval_s = 0.0, 0.0  # between two that left, while others waited

    def try_enter(self) -> Turn | None:
        """A turn, if nobody waits and the limit is not reached."""
        if self.waiting or self.in_flight >= self.limit.value:
            return None
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        return Turn(self)

    async def enter(self, tenant: str, cost: float, timeout_s: float) -> Turn:
        """Wait for a turn. ``cost`` is in bytes, divided by the tenant's weight.

        Raises QuotaExceeded if this tenant has more requests waiting than is its share of a full
        queue, NoCapacity if the queue is full of its requests alone or its turn would come after
        ``timeout_s``, and DeadlineExceeded if it has not come by then.
        """
        own = self._tenants.get(tenant)
        if own is None:
            self._tenants[tenant] = own = _Tenant(self._clock)
        if not own.waiting:  # what it did not use before does not make it the first for long
            own.served = max(own.served, self._clock)
        self._refuse_late(own, timeout_s)
        if self.waiting >= MOST_WAITING:
            self._make_room(own)
        waiter = _Waiter(cost, asyncio.get_running_loop().create_future())
        own.waiting.append(waiter)
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.turn
        except TimeoutError:
            self._give_up(own, waiter)
            raise DeadlineExceeded(
                "the model did not answer in time: send less, or try again later"
            ) from None
        except BaseException:
            self._give_up(own, waiter)
            raise
        return Turn(self)

    def leave(self) -> None:
        now = asyncio.get_running_loop().time()
        if self.waiting and self._left_at:
            newest = now - self._left_at
            self._interval_s += NEW_SHARE * (newest - self._interval_s)
        self._left_at = now if self.waiting else 0.0
        self.in_flight -= 1
        self.fill()

    def fill(self) -> None:
        """Give those who wait their turns, up to the limit."""
        while self.waiting and self.in_flight < self.limit.value:
            own = min(
                (tenant for tenant in self._tenants.values() if tenant.waiting),
                key=lambda tenant: tenant.served,
            )
            waiter = own.waiting.popleft()
            self.waiting -= 1
            if waiter.turn.done():  # its task was cancelled just now
                continue
            self._clock = own.served
            own.served += waiter.cost
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            waiter.turn.set_result(None)

    def measured(
        self, replicas: int, queue_s: float, compute_s: float, *, batches: bool = False
    ) -> None:
        """What so many replicas measured since the last time: seconds for each request.
        ``batches``: Triton gathers requests for the model into batches."""
        self.limit.least = LEAST * replicas
        self.limit.adjust(self.peak, queue_s, compute_s, IN_BATCHES if batches else ONE_BY_ONE)
        self.peak = self.in_flight
        self._tenants = {
            name: tenant
            for name, tenant in self._tenants.items()
            if tenant.waiting or tenant.served > self._clock
        }
        self.fill()

    def _refuse_late(self, own: _Tenant, timeout_s: float) -> None:
        """Refuse at once what would only be refused later."""
        others = sum(1 for tenant in self._tenants.values() if tenant.waiting and tenant is not own)
        # Tenants take turns, so as many of each of the others' may be served meanwhile.
        before = min(self.waiting, len(own.waiting) * (1 + others))
        expected_s = before * self._interval_s
        if expected_s > timeout_s:
            raise self._refusal(own, expected_s)

    def _make_room(self, own: _Tenant) -> None:
        expected_s = self.waiting * self._interval_s
        longest = max(self._tenants.values(), key=lambda tenant: len(tenant.waiting))
        if len(longest.waiting) <= len(own.waiting) + 1:
            raise self._refusal(own, expected_s)
        waiter = longest.waiting.pop()
        self.waiting -= 1
        if not waiter.turn.done():
            waiter.turn.set_exception(_used_up(expected_s))

    def _refusal(self, own: _Tenant, expected_s: float) -> NoCapacity | QuotaExceeded:
        if any(tenant.waiting and tenant is not own for tenant in self._tenants.values()):
            return _used_up(expected_s)
        return NoCapacity(
            "the model is busy: try again shortly", retry_after_s=_retry_after_s(expected_s)
        )

    def _give_up(self, own: _Tenant, waiter: _Waiter) -> None:
        """It leaves the queue, or gives back the turn that it was given at the same moment."""
        if waiter in own.waiting:
            own.waiting.remove(waiter)
            self.waiting -= 1
        elif waiter.turn.done() and not waiter.turn.cancelled() and not waiter.turn.exception():
            self.leave()


def _used_up(expected_s: float) -> QuotaExceeded:
    return QuotaExceeded(
        "your share of the model is used up while others wait for it: try again later",
        retry_after_s=_retry_after_s(expected_s),
    )


def _retry_after_s(expected_s: float) -> int:
    return max(1, math.ceil(min(expected_s, 60)))
