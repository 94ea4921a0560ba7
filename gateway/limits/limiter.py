"""Admission: what a request asks of its limits, taken together and given back at its end."""

import time
from collections.abc import Callable, Sequence
from math import ceil
from typing import Protocol

from gateway.errors import GatewayError, QuotaExceeded
from gateway.limits.headers import Headers, limit_headers
from gateway.limits.limit import Check, Outcome
from gateway.limits.local import LocalStore, share_of, wait_s

BEAT_S = 3.0  # how often ``beat`` must be called


class LimitReached(QuotaExceeded):
    """QuotaExceeded with the headers that its answer carries."""

    def __init__(self, message: str, headers: Headers, wait_s: float | None = None) -> None:
        retry_after_s = None if wait_s is None else max(1, ceil(wait_s))
        super().__init__(message, retry_after_s=retry_after_s)
        self.headers = headers


class SharedStore(Protocol):
    """Limits kept for several processes together (``addons/redis_limits``)."""

    gateways: int  # that are at work now, this one included

    async def admit(self, checks: Sequence[Check]) -> tuple[Outcome, str] | None:
        """The decision and the lease to settle; None, soon, when it cannot decide."""

    def settle(self, lease: str, tokens: float | None) -> None: ...

    async def beat(self) -> None: ...

    async def close(self) -> None: ...


class Answer(Protocol):
    """What tells the caller of its limits: an ``Exchange``."""

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
    ) -> None:
        self.redis, self.clock = redis, clock
        self.local = LocalStore(1 / gateways)
        self._gateways = gateways

    def admit(self, checks: Sequence[Check], answer: Answer | None = None) -> "Admission":
        """``async with`` it; entering raises LimitReached, and then nothing was spent.

        Admitted, the headers are put on ``answer``.
        """
        return Admission(self, checks, answer)

    async def beat(self) -> None:
        """To be called every BEAT_S, and once before the first request."""
        self.local.sweep(self.clock())
        if self.redis:
            await self.redis.beat()
            self.local.share = 1 / max(self._gateways, self.redis.gateways)

    async def close(self) -> None:
        if self.redis:
            await self.redis.close()


class Admission:
    """One request that was let in; leaving the block frees its place and settles its tokens.

    Not settled, a request costs what it reserved, or nothing when it ends in a GatewayError.
    """

    __slots__ = ("_answer", "_checks", "_lease", "_limiter", "_outcome", "_tokens")

    def __init__(self, limiter: Limiter, checks: Sequence[Check], answer: Answer | None) -> None:
        self._limiter, self._checks, self._answer = limiter, checks, answer
        self._outcome = Outcome(True, [])
        self._lease = ""  # '' when this process decided
        self._tokens: float | None = None

    def settle(self, tokens: float) -> None:
        """Say what was really used; the last word counts, so a stream may say it as it goes."""
        self._tokens = tokens

    @property
    def counts_tokens(self) -> bool:
        """Whether any of its limits is of tokens."""
        return any(check.limit.kind == "tokens" for check in self._checks)

    def headers(self) -> Headers:
        """For the answer, as of the admission: a stream sends them before its first byte."""
        return limit_headers(self._checks, self._outcome)

    async def __aenter__(self) -> "Admission":
        limiter, checks = self._limiter, self._checks
        _refuse_oversized(checks)
        decided = await limiter.redis.admit(checks) if limiter.redis and checks else None
        self._outcome, self._lease = decided or (limiter.local.admit(checks, limiter.clock()), "")
        if not self._outcome.admitted:
            raise _refusal(checks, self._outcome)
        if self._answer:
            self._answer.limit_headers = self.headers()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        tokens = self._tokens
        if tokens is None and isinstance(error, GatewayError):
            tokens = 0
        if self._lease and self._limiter.redis:
            self._limiter.redis.settle(self._lease, tokens)
        else:
            self._limiter.local.settle(self._checks, tokens, self._limiter.clock())


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
