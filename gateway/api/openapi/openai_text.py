"""The text routes in the OpenAPI document."""

from collections.abc import Sequence
from typing import Any

from gateway.api.openapi.operations import INFER, Json, body_of, openai_operation
from gateway.api.openapi.schemas import of
from gateway.models.catalogue import Model

_TEXT: Json = {"type": "string"}
_OBJECT: Json = {"type": "object"}
_SAMPLING: Json = {
    "stream": {"type": "boolean", "description": "Server-sent events, `[DONE]` last."},
    "stream_options": {**_OBJECT, "properties": {"include_usage": {"type": "boolean"}}},
    "max_tokens": {"type": "integer", "minimum": 1},
    "n": {"type": "integer", "minimum": 1, "description": "Texts for each prompt."},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "seed": {"type": "integer"},
    "stop": {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]},
    "response_format": {
        **_OBJECT,
        "required": ["type"],
        "properties": {
            "type": {**_TEXT, "enum": ["text", "json_object", "json_schema"]},
            "json_schema": {
                **_OBJECT,
                "required": ["schema"],
                "properties": {
                    "name": _TEXT,
                    "schema": _OBJECT,
                    "strict": {"type": "boolean", "description": "It always is."},
                },
            },
        },
    },
    "user": _TEXT,
}
_CALL: Json = {
    **_OBJECT,
    "required": ["function"],
    "properties": {
        "id": _TEXT,
        "type": _TEXT,
        "function": {**_OBJECT, "properties": {"name": _TEXT, "arguments": _TEXT}},
    },
}
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {**_TEXT, "enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {
            "oneOf": [_TEXT, {"type": "array", "items": _OBJECT}, {"type": "null"}],
        },
        "tool_calls": {"type": "array", "items": _CALL},
        "tool_call_id": _TEXT,
        "reasoning": {**_TEXT, "description": "Of an earlier turn; or `reasoning_content`."},
    },
}
_TOOL: Json = {
    **_OBJECT,
    "required": ["type", "function"],
    "properties": {
        "type": {**_TEXT, "const": "function"},
        "function": {
            **_OBJECT,
            "required": ["name"],
            "properties": {"name": _TEXT, "description": _TEXT, "parameters": _OBJECT},
        },
    },
}
# route -> the fields that only it has
_OWN: dict[str, Json] = {
    "chat": {
        "tools": {"type": "array", "items": _TOOL},
        "tool_choice": {
            "oneOf": [{**_TEXT, "enum": ["none", "auto", "required"]}, _OBJECT],
            "description": "Or one function: {type: function, function: {name}}.",
        },
        "parallel_tool_calls": {"type": "boolean"},
        "logprobs": {"type": "boolean"},
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
    },
    "completions": {
        "echo": {"type": "boolean"},
        "logprobs": {"type": "integer", "minimum": 0, "maximum": 5},
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
        {"oneOf": [_TEXT, {"type": "array", "minItems": 1}]},
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
        if not names:
            continue
        paths[path] = {"post": _text(names, *operation)}
        if route == "chat":
            paths["/v1/responses"] = {"post": _responses(names)}
    names = [
        model.name
        for model in models
        if model.endpoint_schema and "tokenize" in model.endpoint_schema.openai
    ]
    return paths | (_tokens(names) if names else {})


def _tokens(models: list[str]) -> Json:
    model = {**_TEXT, "enum": models}
    flag = {"type": "boolean"}
    tokenize = openai_operation(
        "The model's tokens of a text or a conversation, as in vLLM's API",
        "tokenize",
        "Tokens",
        INFER,
    )
    properties: Json = {
        "model": model,
        "prompt": _TEXT,
        "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
        "tools": {"type": "array", "items": _TOOL},
        "add_special_tokens": {**flag, "default": True},
        "add_generation_prompt": {**flag, "default": True, "description": "For `messages`."},
        "return_token_strs": {**flag, "default": False},
    }
    body: Json = {
        "type": "object",
        "required": ["model"],
        "oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}],
        "properties": properties,
    }
    request: Json = {"model": models[0], "prompt": "Where is my parcel?"}
    tokenize["requestBody"] = body_of(body, {"one": {"value": request}})
    detokenize = openai_operation(
        "The text of a model's tokens, as in vLLM's API", "detokenize", "TokensText", INFER
    )
    ids: Json = {"type": "array", "items": {"type": "integer"}}
    body = {
        "type": "object",
        "required": ["model", "tokens"],
        "properties": {"model": model, "tokens": ids},
    }
    request = {"model": models[0], "tokens": [0, 1, 2]}
    detokenize["requestBody"] = body_of(body, {"one": {"value": request}})
    return {"/tokenize": {"post": tokenize}, "/detokenize": {"post": detokenize}}


def _responses(models: list[str]) -> Json:
    """Served by what serves chat."""
    function = {"name": _TEXT, "description": _TEXT, "parameters": _OBJECT}
    tool = {
        **_OBJECT,
        "required": ["type", "name"],
        "properties": {"type": {**_TEXT, "const": "function"}, **function},
    }
    properties: Json = {
        "model": {**_TEXT, "enum": models},
        "input": {
            "oneOf": [_TEXT, {"type": "array", "items": _OBJECT, "minItems": 1}],
            "description": "A text, or items: message, reasoning, function_call and "
            "function_call_output.",
        },
        "instructions": _TEXT,
        "text": {**_OBJECT, "properties": {"format": {**_OBJECT, "required": ["type"]}}},
        "tools": {"type": "array", "items": tool},
        "tool_choice": {
            "oneOf": [{**_TEXT, "enum": ["none", "auto", "required"]}, _OBJECT],
            "description": "Or one function: {type: function, name}.",
        },
        "parallel_tool_calls": {"type": "boolean"},
        "max_output_tokens": {"type": "integer", "minimum": 1},
        "temperature": _SAMPLING["temperature"],
        "top_p": _SAMPLING["top_p"],
        "include": {"type": "array", "items": {**_TEXT, "enum": ["message.output_text.logprobs"]}},
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
        "stream": {"type": "boolean", "description": "Server-sent events, typed and numbered."},
        "store": {"type": "boolean", "const": False, "description": "Nothing is stored."},
        "user": _TEXT,
    }
    operation = openai_operation(
        "The response to an input, as in OpenAI's API; stateless",
        "create_response",
        "Response",
        INFER,
    )
    body = {"type": "object", "required": ["model", "input"], "properties": properties}
    request = {"model": models[0], "input": "Where is my parcel?", "max_output_tokens": 64}
    operation["requestBody"] = body_of(body, {"one": {"value": request}})
    operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": of("ResponseEvent")}
    return operation


def _text(models: list[str], summary: str, field: str, schema: Json, example: Any) -> Json:
    properties = {"model": {"type": "string", "enum": models}, field: schema, **_SAMPLING}
    properties |= _OWN["chat" if field == "messages" else "completions"]
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
