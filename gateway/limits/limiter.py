"""Admission: what a request asks of its limits, taken together and given back at its end."""

import time
from collections.abc import Callable, Sequence
from math import ceil
from typing import Protocol

from gateway.errors import DeadlineExceeded, GatewayError, QuotaExceeded
from gateway.limits.headers import Headers, limit_headers
from gateway.limits.limit import Check, Limit, Outcome
from gateway.limits.local import LocalStore, share_of, wait_s
from gateway.limits.shared_slots import SharedSlots

BEAT_S = 3.0  # how often ``heartbeat`` must be called


class LimitReached(QuotaExceeded):
    """QuotaExceeded with the headers that its answer carries."""

    def __init__(self, message: str, headers: Headers, wait_s: float | None = None) -> None:
        retry_after_s = None if wait_s is None else max(1, ceil(wait_s))
        super().__init__(message, retry_after_s=retry_after_s)
        self.headers = headers


class SharedStore(Protocol):
    """Limits kept for several processes together (``limits/redis``)."""

    gateways: int  # that are at work now, this one included

    async def admit(self, checks: Sequence[Check]) -> tuple[Outcome, str] | None:
        """The decision and the lease to settle; None, soon, when it cannot decide."""

    def settle(self, lease: str, tokens: float | None) -> None: ...

    def move(self, lease: str, checks: Sequence[Check]) -> None:
        """Hold the concurrency of ``checks`` with this lease from now on, fitting or not."""

    def lease(self) -> str:
        """A new lease that holds nothing yet; '' while this store cannot decide."""

    async def over(self, checks: Sequence[Check]) -> dict[str, Limit] | None:
        """This process's leases that are among the youngest over a limit of concurrency, and which
        limit that is; None when that is not known now."""

    async def heartbeat(self) -> None: ...

    async def close(self) -> None: ...


class Answer(Protocol):
    """What tells the caller of its limits: an ``RequestContext``."""

    limit_headers: Sequence[tuple[bytes, bytes]]


class Limiter:
    """Decides in this process, or in Redis and, while that is ill, in this process.

    Alone, it gives out 1 / ``gateways`` of each limit: how many processes there are, as configured
    or as counted in Redis, whichever is more.
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

    def admit(self, checks: Sequence[Check], answer: Answer | None = None) -> "Admission":
        """``async with`` it; entering raises LimitReached, and then nothing was spent.

        Admitted, the headers are put on ``answer``.
        """
        return Admission(self, checks, answer)

    async def readmit(
        self, held: Sequence[tuple["Admission", Sequence[Check]]]
    ) -> "list[tuple[Admission, Limit]] | None":
        """Move what is under way, the oldest first, to the limits in force: the checks beside it.

        Those that have no place any more, the youngest of each limit, and which limit that is. None
        while Redis cannot say. Only concurrency moves: requests and tokens stay where they were
        counted.
        """
        alone: list[tuple[Admission, Sequence[Check]]] = []
        shared: list[tuple[Admission, Sequence[Check]]] = []
        for admission, checks in held:
            wanted = [check for check in checks if check.limit.kind == "concurrency"]
            if self.redis and not admission.lease and not admission.checks:
                admission.lease = self.redis.lease()
            (shared if admission.lease else alone).append((admission, wanted))
        over = self._readmit_alone(alone)
        if not shared or self.redis is None:
            return over
        for admission, shared_slots in shared:
            self.redis.move(admission.lease, shared_slots)
            admission.move(shared_slots)
        buckets = {check.bucket: check for _, shared_slots in shared for check in shared_slots}
        found = await self.redis.over(list(buckets.values()))
        if found is None:
            return None
        return over + [(each, found[each.lease]) for each, _ in shared if each.lease in found]

    def _readmit_alone(
        self, held: Sequence[tuple["Admission", Sequence[Check]]]
    ) -> "list[tuple[Admission, Limit]]":
        for admission, _ in held:
            for limit, bucket, _ in admission.checks:
                if limit.kind == "concurrency":
                    self.local.free(bucket)
        over: list[tuple[Admission, Limit]] = []
        for admission, wanted in held:
            fitting = []
            for check in wanted:
                if self.local.hold(check.limit, check.bucket):
                    fitting.append(check)
                else:
                    over.append((admission, check.limit))
            admission.move(fitting)
        return over

    async def heartbeat(self) -> None:
        """To be called every BEAT_S, and once before the first request."""
        self.local.sweep(self.clock())
        if self.redis:
            await self.redis.heartbeat()
            self.local.share = 1 / max(self._gateways, self.redis.gateways)

    async def close(self) -> None:
        if self.redis:
            await self.redis.close()


class Admission:
    """One request that was let in; leaving the block frees its place and settles its tokens.

    Not settled, a request costs what it reserved once it was ``started``. It costs nothing if it
    ended before that, or if the model or its server failed; its caller's own deadline or leaving is
    no such failure, since the work was done all the same.
    """

    __slots__ = (
        "_answer",
        "_has_started",
        "_limiter",
        "_outcome",
        "_tokens",
        "checks",
        "is_open",
        "lease",
        "model",
    )

    def __init__(self, limiter: Limiter, checks: Sequence[Check], answer: Answer | None) -> None:
        self._limiter, self.checks, self._answer = limiter, checks, answer
        self._outcome = Outcome(True, [])
        self._tokens: float | None = None
        self._has_started = False
        self.lease = ""  # '' when this process decided
        self.model = ""  # whose limits these are
        self.is_open = False

    def started(self) -> None:
        """The work is with the model's server now: from here on it costs something."""
        self._has_started = True

    def settle(self, tokens: float) -> None:
        """Say what was really used; the last word counts, so a stream may say it as it goes."""
        self._tokens = tokens

    def move(self, checks: Sequence[Check]) -> None:
        """Be counted by the concurrency limits among ``checks``, which hold a place for it, instead
        of those of before."""
        kept = [check for check in self.checks if check.limit.kind != "concurrency"]
        self.checks = [*kept, *(each for each in checks if each.limit.kind == "concurrency")]

    @property
    def counts_tokens(self) -> bool:
        """Whether any of its limits is of tokens."""
        return any(check.limit.kind == "tokens" for check in self.checks)

    def headers(self) -> Headers:
        """For the answer, as of the admission: a stream sends them before its first byte."""
        return limit_headers(self.checks, self._outcome)

    async def __aenter__(self) -> "Admission":
        limiter, checks = self._limiter, self.checks
        if not checks:
            self.is_open = True
            return self
        _refuse_oversized(checks)
        decided = await limiter.redis.admit(checks) if limiter.redis else None
        self._outcome, self.lease = decided or (limiter.local.admit(checks, limiter.clock()), "")
        if not self._outcome.admitted:
            raise _refusal(checks, self._outcome)
        self.is_open = True
        if self._answer:
            self._answer.limit_headers = self.headers()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
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
                f"{cost:g} {limit.kind} never fit into your {limit.described}: ask for less",
                [(b"x-should-retry", b"false")],
            )


def _refusal(checks: Sequence[Check], outcome: Outcome) -> LimitReached:
    """Names the limit that must be waited for longest."""
    waits = [
        wait_s(used, check.cost, *share_of(check.limit, outcome.share))
        for check, used in zip(checks, outcome.used, strict=True)
    ]
    wait = max(waits)
    limit = checks[waits.index(wait)].limit
    headers = limit_headers(checks, outcome)
    headers.append((b"retry-after-ms", b"%d" % ceil(wait * 1000)))
    return LimitReached(f"your {limit.described} is used up: try again later", headers, wait)
