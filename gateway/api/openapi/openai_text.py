"""The text routes in the OpenAPI document."""

from collections.abc import Sequence
from typing import Any

from gateway.api.openapi.operations import INFER, Json, body_of, openai_operation
from gateway.api.openapi.schemas import of
from gateway.models.catalogue import Model

_SAMPLING: Json = {
    "stream": {"type": "boolean", "description": "Server-sent events, `[DONE]` last."},
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
    "max_tokens": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "seed": {"type": "integer"},
    "stop": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "user": {"type": "string"},
}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant"]},
        "content": {"type": "string"},
    },
}
# route -> path, summary, the field with the text, its schema, an example
_TEXT_ROUTES: dict[str, tuple[Any, ...]] = {
    "chat": (
        "/v1/chat/completions",
        "The next turn of a conversation, as in OpenAI's API",
        "messages",
        {"type": "array", "items": _MESSAGE, "minItems": 1},
        [{"role": "user", "content": "Where is my parcel?"}],
    ),
    "completions": (
        "/v1/completions",
        "The continuation of a text, as in OpenAI's API",
        "prompt",
        {"type": "string"},
        "Where is my parcel?",
    ),
}


def describe(models: Sequence[Model]) -> Json:
    """The paths of the routes that any of these models serves."""
    paths = {}
    for route, (path, *operation) in _TEXT_ROUTES.items():
        names = [
            model.name
            for model in models
            if model.endpoint_schema and route in model.endpoint_schema.openai
        ]
        if names:
            paths[path] = {"post": _text(names, *operation)}
    return paths


def _text(models: list[str], summary: str, field: str, schema: Json, example: Any) -> Json:
    properties = {"model": {"type": "string", "enum": models}, field: schema, **_SAMPLING}
    body = {"type": "object", "required": ["model", field], "properties": properties}
    if field == "messages":
        name, response, chunk = "create_chat_completion", "ChatCompletion", "ChatCompletionChunk"
    else:
        name, response, chunk = "create_completion", "Completion", "Completion"
    operation = openai_operation(summary, name, response, INFER)
    request = {"model": models[0], field: example, "max_tokens": 64}
    operation["requestBody"] = body_of(body, {"one": {"value": request}})
    operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": of(chunk)}
    return operation
