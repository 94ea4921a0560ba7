"""How many bytes of bodies and answers are in memory, and for whom.

A body that is still coming and an answer that its client does not read yet are held for as long as
the client likes, within its deadlines. Both are counted here, of everything that is not complete at
once, and refused beyond the settings: for one caller, so that it does not use up what is there for
all, and for all together, so that the process stays within its memory.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gateway.errors import NoCapacity, QuotaExceeded
from gateway.identity.principal import Principal

TENANT_SHARE = 0.5  # of all, for one tenant, once there are tenants


class HeldBytes:
    """``most`` bytes in all, ``most_of_caller`` for one principal. A request that is the only one
    is never refused here: the limit of a body bounds it."""

    def __init__(self, most: int, most_of_caller: int, has_tenants: Callable[[], bool]) -> None:
        self._most, self._most_of_caller = most, most_of_caller
        self._has_tenants = has_tenants
        self.total = 0
        self._callers: Counter[str] = Counter()
        self._tenants: Counter[str] = Counter()

    def take(self, principal: Principal, size: int, own: int) -> None:
        """Count so many bytes more for a request that has ``own`` already. QuotaExceeded or
        NoCapacity, and then nothing is counted. Of no bytes: whether there is room at all."""
        held, of_tenant = self._callers[principal.id], self._tenants[principal.tenant]
        if held > own and held + size > self._most_of_caller:
            raise QuotaExceeded(_too_many("your", self._most_of_caller), retry_after_s=1)
        most_of_tenant = int(self._most * TENANT_SHARE)
        if of_tenant > own and of_tenant + size > most_of_tenant and self._has_tenants():
            raise QuotaExceeded(_too_many("your tenant's", most_of_tenant), retry_after_s=1)
        if self.total > own and self.total + size > self._most:
            raise NoCapacity(
                "the gateway holds as many unfinished requests and unread answers as it can: "
                "try again shortly",
                retry_after_s=1,
            )
        self._add(principal, size)

    @contextmanager
    def counted(self, principal: Principal, size: int) -> Iterator[None]:
        """Around the time that so many bytes are held which cannot be refused any more."""
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
        for counted, name in (
            (self._callers, principal.id),
            (self._tenants, principal.tenant),
        ):
            counted[name] -= size
            if counted[name] <= 0:
                del counted[name]


def _too_many(whose: str, most: int) -> str:
    return (
        f"{whose} unfinished requests and unread answers hold {most} bytes already: finish sending "
        "them, read the answers, and send fewer at a time"
    )
