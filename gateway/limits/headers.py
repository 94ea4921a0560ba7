"""Rate-limit headers, in the IETF's format and in OpenAI's.

draft-ietf-httpapi-ratelimit-headers: ``RateLimit-Policy: "key-requests-1s";q=10;w=1`` and
``RateLimit: "key-requests-1s";r=9;t=1``, where t is the seconds until all of it is back.
OpenAI: ``x-ratelimit-{limit,remaining,reset}-{requests,tokens}``, for the tightest limit.
"""

from collections.abc import Sequence
from math import ceil

from gateway.limits.limit import Check, Limit, Outcome
from gateway.limits.local import share_of

Headers = list[tuple[bytes, bytes]]
_NAMES = {
    kind: tuple(f"x-ratelimit-{what}-{kind}".encode() for what in ("limit", "remaining", "reset"))
    for kind in ("requests", "tokens")
}


def limit_headers(checks: Sequence[Check], outcome: Outcome) -> Headers:
    """The headers of the response to this request, admitted or refused; [] without limits."""
    if not checks:
        return []
    items: list[str] = []
    nearest: dict[str, tuple[Limit, int, float]] = {}
    for (limit, _, _), used in zip(checks, outcome.used, strict=True):
        capacity, rate = share_of(limit, outcome.share)
        remaining = max(0, int(capacity - used + 1e-6))
        if rate:
            reset_s, kind = used / rate, limit.kind
            items.append(f'"{limit.name}";r={remaining};t={ceil(reset_s)}')
            if kind not in nearest or remaining < nearest[kind][1]:
                nearest[kind] = (limit, remaining, reset_s)
        else:
            items.append(f'"{limit.name}";r={remaining}')
    headers = [
        (b"ratelimit-policy", ", ".join([check.limit.policy for check in checks]).encode()),
        (b"ratelimit", ", ".join(items).encode()),
    ]
    for limit, remaining, reset_s in nearest.values():
        of_limit, of_remaining, of_reset = _NAMES[limit.kind]
        headers += [
            (of_limit, limit.quota),
            (of_remaining, b"%d" % remaining),
            (of_reset, duration(reset_s).encode()),
        ]
    return headers


def duration(seconds: float) -> str:
    """A duration in OpenAI's format: '20ms', '1.5s', '6m0s'."""
    if seconds < 1:
        return f"{ceil(seconds * 1000)}ms"
    tenths = ceil(seconds * 10)
    if tenths < 600:
        return f"{tenths / 10:g}s"
    minutes, remainder = divmod(ceil(seconds), 60)
    return f"{minutes}m{remainder}s"
