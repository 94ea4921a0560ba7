"""Admission: what a request takes from its limits, all or nothing, and gives back at its end."""

import time
from collections.abc import Callable, Sequence
from math import ceil
from typing import Protocol

from gateway.errors import DeadlineExceeded, GatewayError, QuotaExceeded
from gateway.limits.headers import Headers, limit_headers
from gateway.limits.limit import Check, Limit, Outcome
from gateway.limits.local import LocalStore, share_of, wait_s
from gateway.limits.shared_slots import SharedSlots

HEARTBEAT_S = 3.0  # how often ``heartbeat`` must be called


class LimitReached(QuotaExceeded):
    """QuotaExceeded, with the headers of its response."""

    def __init__(self, message: str, headers: Headers, wait_s: float | None = None) -> None:
        retry_after_s = None if wait_s is None else max(1, ceil(wait_s))
        super().__init__(message, retry_after_s=retry_after_s)
        self.headers = headers


class SharedStore(Protocol):
    """Limits that several processes share (``limits/redis``)."""

    gateways: int  # the number of running processes, this one included

    async def admit(self, checks: Sequence[Check]) -> tuple[Outcome, str] | None:
        """The decision and the lease to settle; None, after a short wait, if it cannot decide."""

    def settle(self, lease: str, tokens: float | None) -> None: ...

    def move(self, lease: str, checks: Sequence[Check]) -> None:
        """Hold the concurrency of ``checks`` with this lease, even if it does not fit."""

    def lease(self) -> str:
        """A new lease that holds nothing yet; '' while this store cannot decide."""

    async def over(self, checks: Sequence[Check]) -> dict[str, Limit] | None:
        """This process's leases among the youngest that exceed a concurrency limit -> that limit;
        None if it is not known now."""

    async def heartbeat(self) -> None: ...

    async def close(self) -> None: ...


class LimitHeaders(Protocol):
    """What receives the limit headers of a response: a ``RequestContext``."""

    limit_headers: Sequence[tuple[bytes, bytes]]


class Limiter:
    """Decides in this process, or in Redis and, while that is unavailable, in this process.

    On its own, it grants 1 / ``gateways`` of each limit: the number of processes, as configured or
    as counted in Redis, whichever is more.
    """

    def __init__(
        self,
        redis: SharedStore | None = None,
        gateways: int = 1,
        clock: Callable[[], float] = time.monotonic,
        shared_slots: SharedSlots | None = None,
        machine: float = 1.0,
    ) -> None:
        self.redis, self.clock = redis, clock
        self.local = LocalStore(1 / gateways, shared_slots, machine)
        self._gateways = gateways

    def admit(self, checks: Sequence[Check], response: LimitHeaders | None = None) -> "Admission":
        """An admission for ``async with``; if entering raises LimitReached, nothing was spent.

        On admission the limit headers are put on ``response``.
        """
        return Admission(self, checks, response)

    async def readmit(
        self, admissions: Sequence[tuple["Admission", Sequence[Check]]]
    ) -> "list[tuple[Admission, Limit]] | None":
        """Move requests in flight, the oldest first, to the limits in force: each one's new checks.

        Returns those that no longer fit, the youngest of each limit, with that limit; None while
        Redis cannot say. Only concurrency moves: requests and tokens stay where they were counted.
        """
        local: list[tuple[Admission, Sequence[Check]]] = []
        shared: list[tuple[Admission, Sequence[Check]]] = []
        for admission, checks in admissions:
            concurrency = [check for check in checks if check.limit.kind == "concurrency"]
            if self.redis and not admission.lease and not admission.checks:
                admission.lease = self.redis.lease()
            (shared if admission.lease else local).append((admission, concurrency))
        over = self._readmit_locally(local)
        if not shared or self.redis is None:
            return over
        for admission, checks in shared:
            self.redis.move(admission.lease, checks)
            admission.move(checks)
        buckets = {check.bucket: check for _, checks in shared for check in checks}
        exceeded = await self.redis.over(list(buckets.values()))
        if exceeded is None:
            return None
        for admission, _ in shared:
            if admission.lease in exceeded:
                over.append((admission, exceeded[admission.lease]))
        return over

    def _readmit_locally(
        self, admissions: Sequence[tuple["Admission", Sequence[Check]]]
    ) -> "list[tuple[Admission, Limit]]":
        for admission, _ in admissions:
            for limit, bucket, _ in admission.checks:
                if limit.kind == "concurrency":
                    self.local.free(bucket)
        over: list[tuple[Admission, Limit]] = []
        for admission, checks in admissions:
            fitting = []
            for check in checks:
                if self.local.hold(check.limit, check.bucket):
                    fitting.append(check)
                else:
                    over.append((admission, check.limit))
            admission.move(fitting)
        return over

    async def heartbeat(self) -> None:
        """Call it every HEARTBEAT_S, and once before the first request."""
        self.local.sweep(self.clock())
        if self.redis:
            await self.redis.heartbeat()
            self.local.share = 1 / max(self._gateways, self.redis.gateways)

    async def close(self) -> None:
        if self.redis:
            await self.redis.close()


_NOT_LIMITED = Outcome(True, [])


class Admission:
    """One admitted request; leaving the block frees its slot and settles its tokens.

    If it was not settled, a request costs what it reserved, once it has ``started``. It costs
    nothing if it ended before that, or if the model or its server failed. A deadline or a
    disconnect of its caller is no such failure, since the work was done anyway.
    """

    __slots__ = (
        "_has_started",
        "_limiter",
        "_outcome",
        "_response",
        "_tokens",
        "checks",
        "is_open",
        "lease",
        "model",
    )

    def __init__(
        self, limiter: Limiter, checks: Sequence[Check], response: LimitHeaders | None
    ) -> None:
        self._limiter, self.checks, self._response = limiter, checks, response
        self._outcome = _NOT_LIMITED
        self._tokens: float | None = None
        self._has_started = False
        self.lease = ""  # '' if this process decided
        self.model = ""  # the model whose limits these are
        self.is_open = False

    def started(self) -> None:
        """The model's server has the work now: from here on it costs something."""
        self._has_started = True

    def settle(self, tokens: float) -> None:
        """Report the tokens used; the last call counts, so a stream may report as it goes."""
        self._tokens = tokens

    def move(self, checks: Sequence[Check]) -> None:
        """Count against the concurrency limits among ``checks``, which hold a slot for it, instead
        of the previous ones."""
        others = [check for check in self.checks if check.limit.kind != "concurrency"]
        concurrency = [check for check in checks if check.limit.kind == "concurrency"]
        self.checks = [*others, *concurrency]

    @property
    def counts_tokens(self) -> bool:
        """Whether any of its limits is a token limit."""
        return any(check.limit.kind == "tokens" for check in self.checks)

    def headers(self) -> Headers:
        """For the response, as of the admission: a stream sends them before its first byte."""
        return limit_headers(self.checks, self._outcome)

    async def __aenter__(self) -> "Admission":
        limiter, checks = self._limiter, self.checks
        if not checks:
            self.is_open = True
            return self
        _refuse_oversized(checks)
        decision = await limiter.redis.admit(checks) if limiter.redis else None
        self._outcome, self.lease = decision or (limiter.local.admit(checks, limiter.clock()), "")
        if not self._outcome.admitted:
            raise _refusal(checks, self._outcome)
        self.is_open = True
        if self._response:
            self._response.limit_headers = self.headers()
        return self

    async def __aexit__(
        self, error_type: object, error: BaseException | None, traceback: object
    ) -> None:
        self.is_open = False
        tokens = self._tokens
        if tokens is None and error is not None and self._is_free(error):
            tokens = 0
        if self.lease and self._limiter.redis:
            self._limiter.redis.settle(self.lease, tokens)
        else:
            self._limiter.local.settle(self.checks, tokens, self._limiter.clock())

    def _is_free(self, error: BaseException) -> bool:
        if not self._has_started:
            return True
        return isinstance(error, GatewayError) and not isinstance(error, DeadlineExceeded)


def _refuse_oversized(checks: Sequence[Check]) -> None:
    for limit, _, cost in checks:
        if cost > limit.capacity:
            raise LimitReached(
                f"{cost:g} {limit.kind} will never fit your {limit.description}: ask for less",
                [(b"x-should-retry", b"false")],
            )


def _refusal(checks: Sequence[Check], outcome: Outcome) -> LimitReached:
    """The error, which names the limit with the longest wait."""
    waits = [
        wait_s(used, check.cost, *share_of(check.limit, outcome.share))
        for check, used in zip(checks, outcome.used, strict=True)
    ]
    wait = max(waits)
    limit = checks[waits.index(wait)].limit
    headers = limit_headers(checks, outcome)
    headers.append((b"retry-after-ms", b"%d" % ceil(wait * 1000)))
    return LimitReached(f"your {limit.description} is used up: try again later", headers, wait)
