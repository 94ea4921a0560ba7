"""The W3C trace context of a request, handed on to Triton: https://www.w3.org/TR/trace-context/."""

import re
from collections.abc import Iterable
from contextvars import ContextVar

Metadata = tuple[tuple[str, str], ...]
TRACEPARENT, TRACESTATE = b"traceparent", b"tracestate"
# Version, trace id, parent id, flags. A later version may add fields, which are not passed on.
_TRACEPARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-[ -~]*)?"
)
_TRACESTATE = re.compile(rb"[ -~]{1,512}")
# What this task's calls to Triton carry; None for nothing.
upstream_metadata: ContextVar[Metadata | None] = ContextVar("upstream_metadata", default=None)


def read(headers: Iterable[tuple[bytes, bytes]]) -> Metadata | None:
    """The trace context in a request's headers, as metadata; None without a valid one. It is
    written anew: nothing else that a client wrote is in it."""
    parents = [value for name, value in headers if name == TRACEPARENT]
    match = _TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if not match or (match[1] == b"00" and match[5]):
        return None
    parent = b"-".join((b"00", match[2], match[3], match[4]))
    metadata: Metadata = ((TRACEPARENT.decode(), parent.decode()),)
    state = b",".join(value for name, value in headers if name == TRACESTATE)
    if _TRACESTATE.fullmatch(state):
        metadata += ((TRACESTATE.decode(), state.decode()),)
    return metadata


def trace_id(metadata: Metadata) -> str:
    return metadata[0][1][3:35]
