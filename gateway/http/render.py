"""Errors rendered per door: the one place that knows which status and which shape each door has.

RFC 9457 problem+json for tasks and admin, OpenAI's error object under the OpenAI routes,
``{"error": "..."}`` under /v2 (tritonclient reads exactly that key).
"""

from enum import Enum
from typing import Any

import orjson

from gateway.errors import GatewayError
from gateway.http.reply import Reply


class Door(Enum):
    TASK = 0
    OPENAI = 1
    V2 = 2


# code -> status at the (task, OpenAI, V2) door
STATUS: dict[str, tuple[int, int, int]] = {
    "unauthenticated": (401, 401, 401),
    "forbidden": (403, 403, 403),
    "not_found": (404, 404, 404),
    "method_not_allowed": (405, 405, 405),
    "invalid_request": (422, 400, 400),
    "too_large": (413, 413, 413),
    "request_timeout": (408, 408, 408),
    "quota_exceeded": (429, 429, 429),
    "no_capacity": (503, 503, 503),
    "deadline_exceeded": (504, 504, 504),
    "upstream_error": (502, 502, 502),
    "internal": (500, 500, 500),
}
TITLES = {
    "unauthenticated": "No valid API key",
    "forbidden": "Not allowed",
    "not_found": "Not found",
    "method_not_allowed": "Method not allowed",
    "invalid_request": "The request is not valid",
    "too_large": "The request is too large",
    "request_timeout": "The request arrived too slowly",
    "quota_exceeded": "Quota exceeded",
    "no_capacity": "No capacity",
    "deadline_exceeded": "Deadline exceeded",
    "upstream_error": "The model failed",
    "internal": "Internal error",
}
# OpenAI's own names; clients map them to exception classes.
OPENAI_TYPES = {
    "unauthenticated": "authentication_error",
    "forbidden": "permission_error",
    "not_found": "invalid_request_error",
    "quota_exceeded": "rate_limit_error",
}
CLIENT_LEFT = 499  # as nginx calls a client that left before the end of its answer; nobody gets it
_OPENAI_PATHS = ("/v1/models", "/v1/embeddings", "/v1/chat/", "/v1/completions")


def door_of(path: str) -> Door:
    """Which door a path belongs to, known before it is routed (a 401 has a shape too)."""
    if path == "/v2" or path.startswith("/v2/"):
        return Door.V2
    if path.startswith(_OPENAI_PATHS):
        return Door.OPENAI
    return Door.TASK


def status_of(error: GatewayError, path: str) -> int:
    return STATUS[error.code][door_of(path).value]


def error_reply(error: GatewayError, path: str, request_id: str) -> Reply:
    """The error as this path's door shows it."""
    door = door_of(path)
    status = STATUS[error.code][door.value]
    body, content_type = _BODIES[door](error, status, path, request_id)
    reply = Reply(status, orjson.dumps(body), content_type)
    if error.retry_after_s is not None:
        reply.headers.append((b"retry-after", str(error.retry_after_s).encode()))
    if status == 401:
        reply.headers.append((b"www-authenticate", b"Bearer"))
    return reply


def _problem(error: GatewayError, status: int, path: str, request_id: str) -> tuple[Any, bytes]:
    body = {
        "type": f"urn:tidegate:error:{error.code}",
        "title": TITLES[error.code],
        "status": status,
        "detail": error.message,
        "instance": path,
        "code": error.code,
        "request_id": request_id,
    }
    if error.param:
        body["param"] = error.param
    return body, b"application/problem+json"


def _openai(error: GatewayError, status: int, path: str, request_id: str) -> tuple[Any, bytes]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {
        "error": {
            "message": error.message,
            "type": OPENAI_TYPES.get(error.code, kind),
            "param": error.param or None,
            "code": error.code,
            "request_id": request_id,
        }
    }
    return body, b"application/json"


def _v2(error: GatewayError, status: int, path: str, request_id: str) -> tuple[Any, bytes]:
    return {"error": f"{error.message} (request {request_id})"}, b"application/json"


_BODIES = {Door.TASK: _problem, Door.OPENAI: _openai, Door.V2: _v2}
