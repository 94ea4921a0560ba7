"""Cross-origin requests: which web pages may call the gateway and read its responses.

Source: the Fetch standard. Callers identify themselves with a header, never with a cookie, so
``Access-Control-Allow-Credentials`` is never sent: a page can use nothing that its user did not
type into it.
"""

import re
from collections.abc import Mapping, Sequence

Headers = list[tuple[bytes, bytes]]
ANY = "*"
MAX_AGE_S = 600
METHODS = b"GET, HEAD, POST, OPTIONS"
EXPOSED = (
    b"x-request-id, server-timing, retry-after, retry-after-ms, x-should-retry, allow, "
    b"ratelimit, ratelimit-policy, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, "
    b"inference-header-content-length"
)
_NAMES = re.compile(rb"[A-Za-z0-9_-]{1,64}(?:[ \t]*,[ \t]*[A-Za-z0-9_-]{1,64}){0,63}\Z")


class Cors:
    """``origins`` as a browser sends them, such as ``https://app.example.com``; or ``*``."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origin.lower().encode() for origin in origins)
        self._is_any = ANY.encode() in self._origins

    def response_headers(self, request: Mapping[bytes, bytes]) -> Headers:
        """The headers of every response, errors included."""
        if self._is_any:
            allowed = b"*" if b"origin" in request else b""
            vary: Headers = []
        else:
            origin = request.get(b"origin", b"")
            allowed = origin if origin.lower() in self._origins else b""
            vary = [(b"vary", b"Origin")]
        if not allowed:
            return vary
        return [
            *vary,
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", EXPOSED),
        ]

    def preflight(self, method: str, request: Mapping[bytes, bytes]) -> Headers | None:
        """The response headers of a preflight, which carries no identity; None for a request that
        is not a preflight from an allowed origin."""
        if method != "OPTIONS" or b"access-control-request-method" not in request:
            return None
        origin = request.get(b"origin", b"")
        if not origin or not (self._is_any or origin.lower() in self._origins):
            return None
        names = request.get(b"access-control-request-headers", b"")
        headers = [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-max-age", b"%d" % MAX_AGE_S),
            (b"vary", b"Access-Control-Request-Method, Access-Control-Request-Headers"),
        ]
        if _NAMES.match(names):  # any header is allowed: none of them grants anything by itself
            headers.append((b"access-control-allow-headers", names))
        return headers
