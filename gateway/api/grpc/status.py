"""Errors as gRPC statuses: gRPC's column of the table in ``gateway.render``."""

from collections.abc import Iterable

import grpc

from gateway.errors import GatewayError
from gateway.http.request_context import RequestContext
from gateway.limits.limiter import LimitReached

MAX_LENGTH = 1000  # characters of an error message
Metadata = tuple[tuple[str, str], ...]
STATUS = {
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "method_not_allowed": grpc.StatusCode.UNIMPLEMENTED,
    "invalid_request": grpc.StatusCode.INVALID_ARGUMENT,
    "too_large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "request_timeout": grpc.StatusCode.DEADLINE_EXCEEDED,
    "quota_exceeded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "no_capacity": grpc.StatusCode.UNAVAILABLE,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
    "upstream_error": grpc.StatusCode.INTERNAL,
    "internal": grpc.StatusCode.INTERNAL,
}


def trailers(context: RequestContext, error: GatewayError | None = None) -> Metadata:
    """The trailing metadata of a response or an error."""
    metadata = [("x-request-id", context.request_id), ("server-timing", context.server_timing())]
    if context.fallback:
        metadata.append(("x-tidegate-model", context.fallback))
    if error:
        metadata.append(("tidegate-code", error.code))
        if error.retry_after_s is not None:
            metadata.append(("retry-after", str(error.retry_after_s)))
            # gRPC's own retries follow this one.
            metadata.append(("grpc-retry-pushback-ms", str(error.retry_after_s * 1000)))
        if isinstance(error, LimitReached):
            metadata += as_metadata(error.headers)
    return tuple(metadata)


def as_metadata(headers: Iterable[tuple[bytes, bytes]]) -> Metadata:
    return tuple((name.decode(), value.decode()) for name, value in headers)


def shortened(message: str) -> str:
    """Cut to fit a status or an error on the wire: it may quote anything that a client sent."""
    return message if len(message) <= MAX_LENGTH else f"{message[:MAX_LENGTH]}..."
