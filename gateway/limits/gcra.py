"""The generic cell rate algorithm: a leaky bucket kept as one number.

That number is the *theoretical arrival time* (tat): when the bucket will have drained. What is in
use now is ``(tat - now) * rate``. ``admit.lua`` has the same arithmetic, in microseconds.
"""

from gateway.limits.limit import Limit

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
