"""How many bytes of request bodies and responses are in memory, and for whom.

A body that is still arriving and a response that its client has not read are held for as long as
the client likes, within its deadlines. Both are counted here, unless they are complete at once, and
refused beyond the settings: per caller, so that one does not use up what is there for all, and in
total, so that the process stays within its memory.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gateway.errors import NoCapacity, QuotaExceeded
from gateway.policy.principal import Principal

TENANT_SHARE = 0.5  # of the total, for one tenant, once there are tenants


class MemoryBudget:
    """At most ``most`` bytes in total, and ``most_of_caller`` for one principal. A request that is
    the only one is never refused here: the body limit bounds it."""

    def __init__(self, most: int, most_of_caller: int, has_tenants: Callable[[], bool]) -> None:
        self._most, self._most_of_caller = most, most_of_caller
        self._has_tenants = has_tenants
        self.total = 0
        self._callers: Counter[str] = Counter()
        self._tenants: Counter[str] = Counter()

    def take(self, principal: Principal, size: int, request_bytes: int) -> None:
        """Count ``size`` more bytes for a request that holds ``request_bytes`` already. Raises
        QuotaExceeded or NoCapacity, and then counts nothing. With a size of 0, checks whether there
        is room at all."""
        of_caller, of_tenant = self._callers[principal.id], self._tenants[principal.tenant]
        if of_caller > request_bytes and of_caller + size > self._most_of_caller:
            raise QuotaExceeded(_too_many("your", self._most_of_caller), retry_after_s=1)
        most_of_tenant = int(self._most * TENANT_SHARE)
        is_over = of_tenant > request_bytes and of_tenant + size > most_of_tenant
        if is_over and self._has_tenants():
            raise QuotaExceeded(_too_many("your tenant's", most_of_tenant), retry_after_s=1)
        if self.total > request_bytes and self.total + size > self._most:
            raise NoCapacity(
                "the gateway holds as many unfinished requests and unread answers as it can: "
                "try again shortly",
                retry_after_s=1,
            )
        self._add(principal, size)

    @contextmanager
    def counted(self, principal: Principal, size: int) -> Iterator[None]:
        """Count bytes that can no longer be refused, for as long as they are held."""
        self._add(principal, size)
        try:
            yield
        finally:
            self.give_back(principal, size)

    def _add(self, principal: Principal, size: int) -> None:
        if not size:
            return
        self._callers[principal.id] += size
        self._tenants[principal.tenant] += size
        self.total += size

    def give_back(self, principal: Principal, size: int) -> None:
        self.total -= size
        for counts, name in (
            (self._callers, principal.id),
            (self._tenants, principal.tenant),
        ):
            counts[name] -= size
            if counts[name] <= 0:
                del counts[name]


def _too_many(whose: str, most: int) -> str:
    return (
        f"{whose} unfinished requests and unread answers hold {most} bytes already: finish sending "
        "them, read the answers, and send fewer at a time"
    )
