"""Replies, and errors rendered per API: the one module that knows which status and shape each uses.

RFC 9457 problem+json for tasks and admin, OpenAI's error object under the OpenAI routes,
``{"error": "..."}`` under /v2 (tritonclient reads exactly that key).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import orjson
from starlette.types import Send

from gateway.errors import GatewayError, MethodNotAllowed, PromptTooLong, UnknownModel
from modelspec.names import OPENAI_RESOURCES

Respond = Callable[[int, list[tuple[bytes, bytes]], bytes], bool]
PIECE_BYTES = 64 * 1024  # the most of a response that is in a connection's buffer


@dataclass(slots=True)
class Reply:
    """A whole HTTP response."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    version: str = ""  # of the model that wrote it, if that is known

    async def send(self, send: Send) -> None:
        headers = [
            (b"content-type", self.content_type),
            (b"content-length", str(len(self.body)).encode()),
            *self.headers,
        ]
        respond: Respond | None = getattr(send, "respond", None)
        if respond and len(self.body) <= PIECE_BYTES and respond(self.status, headers, self.body):
            return
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        body, last = self.body, b""
        if len(body) <= PIECE_BYTES:
            last = body
        else:
            # Each piece waits until the connection has taken the ones before it.
            for at in range(0, len(body), PIECE_BYTES):
                piece = body[at : at + PIECE_BYTES]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": last})


def json_reply(value: object) -> Reply:
    """numpy arrays are written straight to JSON; a float32 prints in its own shortest form."""
    return Reply(200, orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))


class Api(Enum):
    TASK = 0
    OPENAI = 1
    V2 = 2


# code -> status in the task API, status in the other two, title, OpenAI's own type (by which its
# clients choose an exception)
TABLE: dict[str, tuple[int, int, str, str]] = {
    "unauthenticated": (401, 401, "No valid API key", "authentication_error"),
    "forbidden": (403, 403, "Not allowed", "permission_error"),
    "not_found": (404, 404, "Not found", "invalid_request_error"),
    "method_not_allowed": (405, 405, "Method not allowed", "invalid_request_error"),
    "invalid_request": (422, 400, "The request is not valid", "invalid_request_error"),
    "too_large": (413, 413, "The request is too large", "invalid_request_error"),
    "request_timeout": (408, 408, "The request arrived too slowly", "invalid_request_error"),
    "quota_exceeded": (429, 429, "Quota exceeded", "rate_limit_error"),
    "no_capacity": (503, 503, "No capacity", "server_error"),
    "deadline_exceeded": (504, 504, "Deadline exceeded", "server_error"),
    "upstream_error": (502, 502, "The model failed", "server_error"),
    "internal": (500, 500, "Internal error", "server_error"),
}
SHOWN_PATH = 256  # characters: a path may be long, and a reply to a stranger should not be
COHERE_PATH = "/v2/rerank"  # of its clients: nothing of the V2 protocol
TOKEN_PATHS = ("/tokenize", "/detokenize")  # vLLM's, whose clients are OpenAI's
CLIENT_LEFT = 499  # nginx's status for a client that left before its response ended; never sent


def api_of(path: str) -> Api:
    """Which API a path belongs to; known before routing, since a 401 needs a shape too."""
    if path == "/v2" or (path.startswith("/v2/") and path != COHERE_PATH):
        return Api.V2
    if path in TOKEN_PATHS or (
        path.startswith("/v1/") and path[4:].partition("/")[0] in OPENAI_RESOURCES
    ):
        return Api.OPENAI
    return Api.TASK


def api_name(path: str) -> str:
    """What metrics and logs call the API of a path: v2, openai, task, or control for the rest
    (health, documentation, the operator's listener)."""
    api = api_of(path)
    if api is not Api.TASK:
        return "v2" if api is Api.V2 else "openai"
    return "task" if path.startswith("/v1/") or path == COHERE_PATH else "control"


def status_of(error: GatewayError, api: Api) -> int:
    task, others, _, _ = TABLE[error.code]
    return task if api is Api.TASK else others


def error_reply(error: GatewayError, path: str, request_id: str, status: int = 0) -> Reply:
    """The error in the shape of this path's API; a non-zero ``status`` overrides the table's."""
    api = api_of(path)
    status = status or status_of(error, api)
    if api is Api.TASK:
        body, content_type = _problem(error, status, path, request_id), b"application/problem+json"
    else:
        shape = _openai if api is Api.OPENAI else _v2
        body, content_type = shape(error, request_id), b"application/json"
    reply = Reply(status, orjson.dumps(body), content_type)
    if error.retry_after_s is not None:
        reply.headers.append((b"retry-after", str(error.retry_after_s).encode()))
    if isinstance(error, MethodNotAllowed) and error.allowed:
        reply.headers.append((b"allow", ", ".join(error.allowed).encode()))
    if status == 401:
        reply.headers.append((b"www-authenticate", b"Bearer"))
    return reply


def _problem(error: GatewayError, status: int, path: str, request_id: str) -> dict[str, object]:
    return {
        "type": f"urn:tidegate:error:{error.code}",
        "title": TABLE[error.code][2],
        "status": status,
        "detail": error.message,
        "instance": path[:SHOWN_PATH],
        "code": error.code,
        "request_id": request_id,
        **({"param": error.param} if error.param else {}),
    }


def _openai(error: GatewayError, request_id: str) -> dict[str, object]:
    message, code = error.message, error.code
    # OpenAI's own codes, where its clients look for them: agents cut a prompt that is too long.
    if isinstance(error, PromptTooLong):
        code = "context_length_exceeded"
    if isinstance(error, UnknownModel):
        code = "model_not_found"
        if error.name:
            message = f"The model {error.name} does not exist: see GET /v1/models for yours"
    fields = {
        "message": message,
        "type": TABLE[error.code][3],
        "param": error.param or None,
        "code": code,
        "request_id": request_id,
    }
    return {"error": fields}


def _v2(error: GatewayError, request_id: str) -> dict[str, object]:
    return {"error": f"{error.message} (request {request_id})"}
