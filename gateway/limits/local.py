"""Limits kept in this process: no wait, no lock.

By the generic cell rate algorithm a leaky bucket is one number, the *theoretical arrival time*
(tat): when it will have drained. What is in use now is ``(tat - now) * rate``. ``admit.lua``
has the same arithmetic, in microseconds.
"""

from collections.abc import Sequence

from gateway.limits.limit import Check, Limit, Outcome

# Sums of times are not exact: so much too early still counts as in time.
SLACK_S = 1e-6
FREED_S = 1.0  # when to ask again for what another request holds


def level(tat: float, now: float, rate: float) -> float:
    """Units in use at ``now``."""
    return (tat - now) * rate if tat > now else 0.0


def spent(tat: float, now: float, rate: float, cost: float) -> float:
    """The tat after ``cost`` more units; a negative cost gives back."""
    return (tat if tat > now or cost < 0 else now) + cost / rate


def fits(used: float, cost: float, capacity: float, rate: float) -> bool:
    """Whether ``cost`` more units go in.

    A cost above the capacity (of a small share of a limit) goes into an empty bucket, which then is
    in debt: the rate holds all the same, and nobody is refused for ever.
    """
    return used + min(cost, capacity) <= capacity + SLACK_S * rate


def wait_s(used: float, cost: float, capacity: float, rate: float) -> float:
    """Seconds until ``cost`` units fit, 0 if they do; a guess where they must first be freed."""
    if fits(used, cost, capacity, rate):
        return 0.0
    return (used + min(cost, capacity) - capacity) / rate if rate else FREED_S


def share_of(limit: Limit, share: float) -> tuple[float, float]:
    """(capacity, rate) of this part of a limit; of concurrency at least one."""
    if share == 1.0:
        return limit.capacity, limit.rate
    if limit.kind == "concurrency":
        return max(1.0, limit.capacity * share // 1), 0.0
    return limit.capacity * share, limit.rate * share


class LocalStore:
    """Gives out ``share`` of every limit.

    It forgets a bucket once it is full again (``sweep``), so it holds what was used lately.
    """

    def __init__(self, share: float = 1.0) -> None:
        self.share = share
        self._tats: dict[str, float] = {}
        self._held: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._tats) + len(self._held)

    def admit(self, checks: Sequence[Check], now: float) -> Outcome:
        """Spend every check's cost, or nothing when one does not fit. ``now`` in monotonic s."""
        share, used, admitted = self.share, [], True
        for limit, bucket, cost in checks:
            capacity, rate = share_of(limit, share)
            in_use = self._in_use(bucket, now, rate)
            used.append(in_use)
            admitted = admitted and fits(in_use, cost, capacity, rate)
        if admitted:
            for place, (limit, bucket, cost) in enumerate(checks):
                self._take(bucket, now, limit.rate * share, cost)
                used[place] += cost
        return Outcome(admitted, used, share)

    def settle(self, checks: Sequence[Check], tokens: float | None, now: float) -> None:
        """Free the concurrency; charge ``tokens`` instead of what was reserved (None: that)."""
        for limit, bucket, cost in checks:
            if limit.kind == "concurrency":
                self._free(bucket)
            elif limit.kind == "tokens" and tokens is not None and tokens != cost:
                self._take(bucket, now, limit.rate * self.share, tokens - cost)

    def sweep(self, now: float) -> None:
        """Forget what has come back in full."""
        self._tats = {bucket: tat for bucket, tat in self._tats.items() if tat > now}

    def _in_use(self, bucket: str, now: float, rate: float) -> float:
        if not rate:
            return self._held.get(bucket, 0)
        return level(self._tats.get(bucket, now), now, rate)

    def _take(self, bucket: str, now: float, rate: float, cost: float) -> None:
        if rate:
            self._tats[bucket] = spent(self._tats.get(bucket, now), now, rate, cost)
        else:
            self._held[bucket] = self._held.get(bucket, 0) + 1

    def _free(self, bucket: str) -> None:
        held = self._held.get(bucket, 0) - 1
        if held > 0:
            self._held[bucket] = held
        else:
            self._held.pop(bucket, None)
