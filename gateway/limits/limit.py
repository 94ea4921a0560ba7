"""A limit, and what one request takes from it."""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from math import ceil
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

Scope = Literal["key", "tenant", "model"]
LimitType = Literal["requests", "concurrency", "tokens"]


Glob = Annotated[str, Field(pattern=r"^[A-Za-z0-9._*?\[\]!:=/,@ -]{1,256}$")]


class Limit(BaseModel):
    """At most ``amount`` in ``window_s`` seconds, and ``burst`` at once (``amount`` if 0).

    For concurrency, ``amount`` is the number in flight at once, and window and burst are ignored.
    The limit counts requests for these models by these tenants and principals. Raises ValueError,
    which says what to write instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    scope: Scope
    kind: LimitType
    amount: Annotated[float, Field(gt=0, lt=1e12, allow_inf_nan=False)]
    window_s: Annotated[int, Field(gt=0, le=86400 * 366)] = 1
    burst: Annotated[float, Field(ge=0, lt=1e12, allow_inf_nan=False)] = 0
    models: list[Glob] = ["*"]
    tenants: list[Glob] = ["*"]
    principals: list[Glob] = ["*"]

    @model_validator(mode="after")
    def _check_burst(self) -> "Limit":
        if 0 < self.burst < 1:
            raise ValueError("set burst to 1 or more (0: as much as amount)")
        if self.capacity < 1:
            raise ValueError(f"amount {self.amount:g} lets nothing through: set burst = 1")
        return self

    @cached_property
    def capacity(self) -> float:
        """How much is available after a while without requests."""
        return self.burst or self.amount

    @cached_property
    def rate(self) -> float:
        """Units that come back per second; 0 for concurrency, which comes back when freed."""
        return 0.0 if self.kind == "concurrency" else self.amount / self.window_s

    @cached_property
    def name(self) -> str:
        """The name in the headers; unique for a caller."""
        window = "" if self.kind == "concurrency" else f"-{self.window_s}s"
        return f"{self.scope}-{self.kind}{window}{self._label}"

    @property
    def _label(self) -> str:
        """Two limits that differ only in whose requests they count must not share a bucket."""
        globs = [self.models, self.tenants, self.principals]
        if globs == [["*"], ["*"], ["*"]]:
            return ""
        return "-" + hashlib.sha256(repr(globs).encode()).hexdigest()[:6]

    @cached_property
    def identity(self) -> str:
        """What is counted together. A different amount is a different limit, which starts afresh,
        except for concurrency: requests in flight count whatever the amount."""
        if self.kind == "concurrency":
            return self.name
        return f"{self.name}:{self.amount}:{self.burst}"

    @cached_property
    def policy(self) -> str:
        """An item of the RateLimit-Policy header."""
        if self.kind == "concurrency":
            return f'"{self.name}";q={self.amount:.0f};qu="concurrent-requests"'
        unit = ';qu="tokens"' if self.kind == "tokens" else ""
        quota, window_s = self.amount, self.window_s
        if self.burst > self.amount:  # r is never above q: report the burst and its window
            quota, window_s = self.burst, ceil(self.burst / self.rate)
        return f'"{self.name}";q={quota:.0f};w={window_s}{unit}'

    @cached_property
    def quota(self) -> bytes:
        """The most that the headers in OpenAI's format can say is left."""
        return b"%d" % max(self.amount, self.capacity)

    @cached_property
    def description(self) -> str:
        """For people: 'key limit of 10 requests in 1 s'."""
        if self.kind == "concurrency":
            return f"{self.scope} limit of {self.amount:g} requests at once"
        return f"{self.scope} limit of {self.amount:g} {self.kind} in {self.window_s} s"


class Check(NamedTuple):
    """``cost`` units of ``limit``, taken from ``bucket`` (which belongs to one subject)."""

    limit: Limit
    bucket: str
    cost: float = 1.0


class Outcome(NamedTuple):
    """A store's decision. ``used``: units in use of each limit, with this request if admitted.

    ``share`` is the part of each limit that this store may grant: 1 unless it decides alone.
    """

    admitted: bool
    used: list[float]
    share: float = 1.0


class Subject(NamedTuple):
    """Whose request it is. Models are counted per tenant: a 429 is about *your* requests."""

    tenant: str
    key_id: str
    model: str


def checks_of(
    limits: Iterable[Limit], subject: Subject, tokens: float = 0, weight: float = 1
) -> list[Check]:
    """What one request takes from each limit: ``weight`` requests, and up to ``tokens`` tokens."""
    costs = {"requests": weight, "concurrency": 1.0, "tokens": tokens}
    return [Check(limit, bucket_of(limit, subject), costs[limit.kind]) for limit in limits]


def bucket_of(limit: Limit, subject: Subject) -> str:
    """The name under which a subject's use is stored.

    A tenant's buckets all have the same text in braces (a tenant's name contains none itself), and
    are therefore in one slot of a Redis Cluster.
    """
    owner = {"key": subject.key_id, "tenant": "", "model": subject.model}[limit.scope]
    return f"tidegate:{{{subject.tenant}}}:{limit.identity}:{owner}"
