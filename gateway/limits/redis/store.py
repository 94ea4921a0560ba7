"""Limits stored in Redis: the same for every worker and gateway that uses it."""

import asyncio
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from gateway.limits.limit import Check, Limit, Outcome
from gateway.limits.redis.connection import TIMEOUT_S, Call, RedisConnection, Reply
from gateway.limits.redis.running_timeout import RunningTimeout

LEASE_S = 10.0  # what a gateway holds comes back this long after its last heartbeat
_LEASE_US = int(LEASE_S * 1e6)
_GATEWAYS = "tidegate:gateways"
_UNSENT = 10_000  # finished leases queued while Redis is unavailable; any others expire


class RedisStore:
    """One Lua call per admission. Nothing here raises: what Redis cannot decide is None."""

    def __init__(self, url: str, restarted: Callable[[], None] = lambda: None) -> None:
        self.gateways = 1  # processes with a recent heartbeat, this one included
        self._process_id = os.urandom(6).hex()
        self._numbers = itertools.count()
        self._ahead_us = 0  # Redis's clock, of ours
        self._held: dict[str, Sequence[Check]] = {}
        self._unsent: deque[Call] = deque(maxlen=_UNSENT)
        self._heartbeat_call = Call(
            "renew", [_GATEWAYS], [_LEASE_US, "concurrency", self._process_id]
        )
        self._connection = RedisConnection(url, self._heartbeat_call, self._catch_up, restarted)

    async def admit(self, checks: Sequence[Check]) -> tuple[Outcome, str] | None:
        """The decision and the lease to settle; None, after 50 ms at most, if Redis is
        unavailable."""
        lease = self._new_lease()
        reply: Reply = None
        try:
            async with RunningTimeout(TIMEOUT_S):
                reply = await self._connection.call(_admit_call(checks, lease))
        except TimeoutError:
            pass
        finally:
            if not isinstance(reply, list):
                # Redis may still admit it, for nobody. This call comes after it: the connection
                # keeps the order.
                self._finish(lease, _leased(checks), 0, again=True)
        if not isinstance(reply, list):
            return None
        is_admitted, now_us, *used = reply
        self._ahead_us = now_us - time.time_ns() // 1000
        if is_admitted:
            self._held[lease] = _leased(checks)
        return Outcome(bool(is_admitted), [units / 1000 for units in used]), lease

    def settle(self, lease: str, tokens: float | None) -> None:
        """End a lease without waiting; ``tokens`` as in ``LocalStore.settle``."""
        self._finish(lease, self._held.pop(lease, ()), tokens, again=False)

    def move(self, lease: str, checks: Sequence[Check]) -> None:
        """Hold the concurrency of ``checks`` with this lease, even if it does not fit."""
        previous = self._held.get(lease, ())
        others = [check for check in previous if check.limit.kind != "concurrency"]
        concurrency = [check for check in checks if check.limit.kind == "concurrency"]
        self._held[lease] = [*others, *concurrency]
        buckets = {check.bucket for check in concurrency}
        released = [
            check
            for check in previous
            if check.limit.kind == "concurrency" and check.bucket not in buckets
        ]
        self._finish(lease, released, None, again=False)
        for check in concurrency:
            args = (_LEASE_US, "concurrency", _member(lease, check))
            self._connection.call(Call("renew", [_leases(check.bucket)], args))

    def lease(self) -> str:
        """A new lease that holds nothing yet; '' while Redis is unavailable."""
        return self._new_lease() if self._connection.is_healthy else ""

    def _new_lease(self) -> str:
        # Sorting leases by name sorts them by age, whichever process created them, and whatever its
        # own clock says.
        now_us = time.time_ns() // 1000 + self._ahead_us
        return f"{now_us:016x}-{self._process_id}-{next(self._numbers)}"

    async def over(self, checks: Sequence[Check]) -> dict[str, Limit] | None:
        """Our leases that are beyond the limit when each bucket's leases are sorted by age -> the
        limit; None while Redis is unavailable."""
        over: dict[str, Limit] = {}
        for check in checks:
            call = Call("over", [_leases(check.bucket)], [int(check.limit.capacity)])
            try:
                async with RunningTimeout(TIMEOUT_S):
                    members = await self._connection.call(call)
            except TimeoutError:
                members = None
            if not isinstance(members, list):
                return None
            for member in members:
                lease = bytes(member).decode().rpartition(":")[0]
                if lease in self._held:
                    over[lease] = check.limit
        return over

    async def heartbeat(self) -> None:
        """Renew this gateway's leases, and count the gateways."""
        if await self._connection.reached():
            self._renew()
        count = await self._connection.call(self._heartbeat_call)
        if isinstance(count, int):
            self.gateways = count

    def _renew(self) -> None:
        buckets: dict[tuple[str, str], list[str]] = {}
        for lease, checks in self._held.items():
            for check in checks:
                key = (check.bucket, check.limit.kind)
                buckets.setdefault(key, []).append(_member(lease, check))
        for (bucket, kind), members in buckets.items():
            self._connection.call(Call("renew", [_leases(bucket)], [_LEASE_US, kind, *members]))

    async def close(self) -> None:
        await self._connection.close()

    def _finish(
        self, lease: str, checks: Sequence[Check], tokens: float | None, *, again: bool
    ) -> None:
        if not checks:
            return
        call = _finish_call(checks, lease, tokens, again)
        self._connection.call(call).add_done_callback(partial(self._keep_unsent, call))

    def _keep_unsent(self, call: Call, future: "asyncio.Future[Reply]") -> None:
        if future.cancelled() or future.result() is None:
            self._unsent.append(call._replace(args=[1, *call.args[1:]]))

    def _catch_up(self) -> None:
        """After an outage, report to Redis what is in flight and what has ended."""
        self._renew()
        unsent, self._unsent = self._unsent, deque(maxlen=_UNSENT)
        for call in unsent:
            self._connection.call(call).add_done_callback(partial(self._keep_unsent, call))


def _leases(bucket: str) -> str:
    return f"held:{bucket}"  # no subject's name can turn this into another's bucket


def _leased(checks: Sequence[Check]) -> list[Check]:
    return [check for check in checks if check.limit.kind != "requests"]


def _member(lease: str, check: Check) -> str:
    return f"{lease}:{check.cost}"


def _keys(checks: Sequence[Check]) -> list[str]:
    return [key for check in checks for key in (check.bucket, _leases(check.bucket))]


def _interval_us(check: Check) -> float:
    return 1e6 / check.limit.rate if check.limit.rate else 0


def _admit_call(checks: Sequence[Check], lease: str) -> Call:
    args: list[str | int | float] = [lease, _LEASE_US]
    for check in checks:
        limit = check.limit
        args += (limit.kind, limit.capacity, _interval_us(check), str(check.cost))
    return Call("admit", _keys(checks), args)


def _finish_call(checks: Sequence[Check], lease: str, tokens: float | None, again: bool) -> Call:
    args: list[str | int | float] = [int(again)]
    for check in checks:
        used = check.cost if tokens is None else tokens
        args += (_member(lease, check), _interval_us(check), check.cost, used)
    return Call("finish", _keys(checks), args)
