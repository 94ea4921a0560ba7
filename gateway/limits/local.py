"""Limits counted in this process: no wait, no lock.

In the generic cell rate algorithm a leaky bucket is one number, the *theoretical arrival time*
(tat): when it will have drained. The units in use now are ``(tat - now) * rate``. ``admit.lua`` has
the same arithmetic, in microseconds.
"""

from collections.abc import Sequence

from gateway.limits.limit import Check, Limit, Outcome
from gateway.limits.shared_slots import MOST, SharedSlots

# Sums of times are not exact: a request that is this much too early is still in time.
SLACK_S = 1e-6
MAX_BUCKETS = 50_000  # of one tenant
FREED_S = 1.0  # when to retry for a slot that another request holds


def level(tat: float, now: float, rate: float) -> float:
    """Units in use at ``now``."""
    return (tat - now) * rate if tat > now else 0.0


def spent(tat: float, now: float, rate: float, cost: float) -> float:
    """The tat after ``cost`` more units; a negative cost gives units back."""
    return (tat if tat > now or cost < 0 else now) + cost / rate


def fits(used: float, cost: float, capacity: float, rate: float) -> bool:
    """Whether ``cost`` more units fit.

    A cost above the capacity (of a small share of a limit) fits an empty bucket, which is then in
    debt: the rate is kept all the same, and nobody is refused forever.
    """
    return used + min(cost, capacity) <= capacity + SLACK_S * rate


def wait_s(used: float, cost: float, capacity: float, rate: float) -> float:
    """Seconds until ``cost`` units fit, 0 if they do; a guess if others must first free them."""
    if fits(used, cost, capacity, rate):
        return 0.0
    return (used + min(cost, capacity) - capacity) / rate if rate else FREED_S


def share_of(limit: Limit, share: float) -> tuple[float, float]:
    """(capacity, rate) of this share of a limit; at least one for concurrency."""
    if share == 1.0:
        return limit.capacity, limit.rate
    if limit.kind == "concurrency":
        return max(1.0, limit.capacity * share // 1), 0.0
    return limit.capacity * share, limit.rate * share


class LocalStore:
    """Grants ``share`` of every limit.

    With ``shared_slots``, the processes of one machine enforce small concurrency limits together:
    ``machine`` is this machine's share of them.

    It forgets a bucket once it is full again (``sweep``), so it holds what was used recently; and
    it holds at most ``MAX_BUCKETS`` per tenant: callers beyond share one bucket per limit.
    """

    def __init__(
        self, share: float = 1.0, shared_slots: SharedSlots | None = None, machine: float = 1.0
    ) -> None:
        self.share = share
        self._slots, self._machine = shared_slots, machine
        self._tats: dict[str, float] = {}
        self._held: dict[str, int] = {}
        self._tenants: dict[str, int] = {}  # tenant -> the number of its buckets in _tats

    def __len__(self) -> int:
        return len(self._tats) + len(self._held)

    def admit(self, checks: Sequence[Check], now: float) -> Outcome:
        """Spend every check's cost, or nothing if one does not fit. ``now``: monotonic seconds."""
        share, used, admitted = self.share, [], True
        rates: list[tuple[str, float, float, float]] = []  # bucket, tat, rate and cost
        for limit, bucket, cost in checks:
            if limit.kind == "concurrency":
                in_use, (capacity, rate) = float(self._held.get(bucket, 0)), self._room(limit)
            else:
                capacity, rate = share_of(limit, share)
                bucket = self._bucket(limit, bucket)
                tat = self._tats.get(bucket, now)
                in_use = level(tat, now, rate)
                rates.append((bucket, tat, rate, cost))
            used.append(in_use)
            admitted = admitted and fits(in_use, cost, capacity, rate)
        if admitted and len(rates) < len(checks):
            admitted = self._hold_all(checks, used)
        if not admitted:
            return Outcome(False, used, share)
        for bucket, tat, rate, cost in rates:
            self._remember(bucket, spent(tat, now, rate, cost))
        return Outcome(
            True, [in_use + check.cost for in_use, check in zip(used, checks, strict=True)], share
        )

    def _hold_all(self, checks: Sequence[Check], used: list[float]) -> bool:
        """Take a slot of each concurrency limit, or none; what is ``used`` is set for the one that
        had no slot left."""
        held: list[str] = []
        for index, (limit, bucket, _) in enumerate(checks):
            if limit.kind != "concurrency":
                continue
            if not self.hold(limit, bucket):
                used[index] = self._room(limit)[0]  # other processes hold them
                for other in held:
                    self.free(other)
                return False
            held.append(bucket)
        return True

    def settle(self, checks: Sequence[Check], tokens: float | None, now: float) -> None:
        """Free the concurrency, and charge ``tokens`` instead of the reserved ones, unless None."""
        for limit, bucket, cost in checks:
            if limit.kind == "concurrency":
                self.free(bucket)
            elif limit.kind == "tokens" and tokens is not None and tokens != cost:
                self._spend(limit, bucket, now, tokens - cost)

    def hold(self, limit: Limit, bucket: str) -> bool:
        """Take one slot of a concurrency limit, if one is free."""
        held = self._held.get(bucket, 0)
        if held + 1 > self._room(limit)[0]:
            return False
        if self._uses_slots(limit) and self._slots:
            amount = max(1, int(limit.capacity * self._machine))
            if not self._slots.take(bucket, amount):
                return False
        self._held[bucket] = held + 1
        return True

    def free(self, bucket: str) -> None:
        held = self._held.get(bucket, 0) - 1
        if held > 0:
            self._held[bucket] = held
        else:
            self._held.pop(bucket, None)
        if self._slots:
            self._slots.keep(bucket, max(held, 0))

    def sweep(self, now: float) -> None:
        """Forget the buckets that are full again."""
        self._tats = {bucket: tat for bucket, tat in self._tats.items() if tat > now}
        self._tenants = {}
        for bucket in self._tats:
            tenant = _tenant(bucket)
            self._tenants[tenant] = self._tenants.get(tenant, 0) + 1

    def _uses_slots(self, limit: Limit) -> bool:
        return self._slots is not None and limit.capacity <= MOST

    def _room(self, limit: Limit) -> tuple[float, float]:
        """(capacity, 0) of a concurrency limit, for this process."""
        if self._uses_slots(limit):
            return max(1.0, limit.capacity * self._machine // 1), 0.0
        return share_of(limit, self.share)

    def _spend(self, limit: Limit, bucket: str, now: float, cost: float) -> None:
        bucket, rate = self._bucket(limit, bucket), limit.rate * self.share
        self._remember(bucket, spent(self._tats.get(bucket, now), now, rate, cost))

    def _remember(self, bucket: str, tat: float) -> None:
        if bucket not in self._tats:
            tenant = _tenant(bucket)
            self._tenants[tenant] = self._tenants.get(tenant, 0) + 1
        self._tats[bucket] = tat

    def _bucket(self, limit: Limit, bucket: str) -> str:
        """The bucket, or the one that a tenant's surplus callers share."""
        if limit.scope == "tenant" or bucket in self._tats:
            return bucket
        if self._tenants.get(_tenant(bucket), 0) < MAX_BUCKETS:
            return bucket
        return f"{bucket.partition('}')[0]}}}:{limit.identity}:*"


def _tenant(bucket: str) -> str:
    return bucket.partition("}")[0]
