"""What the operations of every API have in common: their failures, bodies and responses."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gateway.api.openapi.schemas import of

Json = dict[str, Any]


class Api(NamedTuple):
    """How an API renders errors: content type, schema, and the status of an invalid request."""

    tag: str
    error_type: str
    error: str
    invalid_status: int


TASK = Api("tasks", "application/problem+json", "Problem", 422)
OPENAI = Api("OpenAI", "application/json", "OpenAIError", 400)
V2 = Api("V2", "application/json", "V2Error", 400)
# The failures of every route, of routes that query Triton, and of routes that run a model.
READ = (401, 403)
QUERY = (*READ, 404, 502, 503, 504)
INFER = (0, 401, 403, 404, 408, 413, 429, 500, 502, 503, 504)  # 0: a request that is not valid
_ERRORS = {
    400: "The request is not valid",
    401: "No valid key",
    403: "You may not do this",
    404: "No such model or version, or not yours",
    408: "The body arrived too slowly",
    413: "The body is over the limit",
    422: "The request does not fit the schema",
    429: "You have reached a limit: see Retry-After",
    500: "The gateway failed: report the request id",
    502: "The model failed",
    503: "No capacity, or the model is not being served now: see Retry-After",
    504: "The deadline passed",
}
_RETRY = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}


def openai_operation(summary: str, name: str, schema: str, failures: Sequence[int]) -> Json:
    return {
        "tags": [OPENAI.tag],
        "summary": summary,
        "operationId": name,
        "responses": responses(OPENAI, of(schema), failures),
    }


def body_of(schema: Json, examples: Mapping[str, object]) -> Json:
    content = {"application/json": {"schema": schema, "examples": examples}}
    return {"required": True, "content": content}


def _json(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def responses(api: Api, schema: Json | None, failures: Sequence[int]) -> Json:
    """The responses of an operation, by status; without a schema a 200 has no body."""
    by_status: Json = {"200": _json("OK", schema) if schema else {"description": "OK"}}
    for failure in failures:
        status = failure or api.invalid_status
        by_status[str(status)] = {
            "description": _ERRORS[status],
            "content": {api.error_type: {"schema": of(api.error)}},
            **({"headers": _RETRY} if status in (429, 503) else {}),
        }
    return by_status
