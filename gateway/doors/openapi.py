"""The API's description, rendered from the catalogue: a pipeline declared is documented."""

from collections.abc import Mapping
from typing import Any

from gateway.models.catalogue import Catalogue, Model
from gateway.models.face import Face

Json = dict[str, Any]
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong and what to do."},
        "instance": {"type": "string"},
        "code": {"type": "string", "description": "Stable: branch on this."},
        "param": {"type": "string", "description": "The field that is wrong."},
        "request_id": {"type": "string"},
    },
}
_ERRORS = {
    "401": "No valid API key",
    "413": "The body is over the limit",
    "422": "The request does not fit the schema",
    "502": "The model failed",
    "503": "No capacity; see Retry-After",
    "504": "The deadline passed",
}
_GENERATE = ("Generate one answer", "Generate answers as server-sent events")
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
# route -> path, what it does, the field with the text, its schema, an example
_TEXT_ROUTES: dict[str, tuple[Any, ...]] = {
    "chat": (
        "/v1/chat/completions",
        "The next turn of a conversation, as OpenAI's API gives it",
        "messages",
        {"type": "array", "items": _MESSAGE, "minItems": 1},
        [{"role": "user", "content": "Where is my parcel?"}],
    ),
    "completions": (
        "/v1/completions",
        "A text gone on with, as OpenAI's API gives it",
        "prompt",
        {"type": "string"},
        "Where is my parcel?",
    ),
}
_IDENTITY_BODY = {
    "inputs": [{"name": "INPUT0", "shape": [1, 3], "datatype": "FP32", "data": [1.5, 2, 3]}]
}


def describe(base: Json, catalogue: Catalogue) -> Json:
    """``base`` (FastAPI's document of the control routes) with every door's routes added."""
    document = dict(base)
    paths = dict(base.get("paths", {}))
    for model in catalogue.public:
        if model.face and not model.decoupled:
            paths[f"/v1/{model.name}"] = {"post": _task(model, model.face)}
    paths |= _openai_paths(catalogue) | _v2_paths(catalogue)
    document["paths"] = paths
    components = document.setdefault("components", {})
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key, `tg_...`."}
    }
    components.setdefault("schemas", {})["Problem"] = _PROBLEM
    document["security"] = [{"key": []}]
    return document


def _task(model: Model, face: Face) -> Json:
    row, answer = face.raw["request"], face.raw["response"]
    example = face.raw["example"]
    batch = {
        "type": "object",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {"inputs": {"type": "array", "minItems": 1, "maxItems": 1024, "items": row}},
    }
    outputs = {
        "type": "object",
        "required": ["outputs"],
        "properties": {"outputs": {"type": "array", "items": answer}},
    }
    examples = {"one": {"value": example}, "several": {"value": {"inputs": [example, example]}}}
    card = "\n".join(f"- **{key}**: {value}" for key, value in face.raw.get("card", {}).items())
    return {
        "tags": ["tasks"],
        "summary": face.purpose,
        "description": card,
        "operationId": model.name,
        "requestBody": _with_form(_body({"oneOf": [row, batch]}, examples), row),
        "responses": _responses({"oneOf": [answer, outputs]}, "application/problem+json"),
    }


def _openai_paths(catalogue: Catalogue) -> Json:
    paths: Json = {
        "/v1/models": {
            "get": _plain("The pipelines that can be called, as OpenAI lists models", "OpenAI"),
        },
    }
    names = [model.name for model in catalogue.public]
    if names:
        one = _plain("One pipeline, as OpenAI describes a model", "OpenAI")
        parameter = _path_parameter("model", names[0], names)
        paths["/v1/models/{model}"] = {"parameters": [parameter], "get": one}
    serving = [m.name for m in catalogue.public if m.face and m.face.openai("embeddings")]
    if serving:
        paths["/v1/embeddings"] = {"post": _embeddings(serving)}
    for route, (path, *told) in _TEXT_ROUTES.items():
        serving = [m.name for m in catalogue.public if m.face and m.face.openai(route) is not None]
        if serving:
            paths[path] = {"post": _text(serving, *told)}
    return paths


def _embeddings(models: list[str]) -> Json:
    text = {"type": "string", "minLength": 1}
    schema = {
        "type": "object",
        "required": ["model", "input"],
        "additionalProperties": False,
        "properties": {
            "model": {"type": "string", "enum": models},
            "input": {"oneOf": [text, {"type": "array", "items": text, "minItems": 1}]},
            "encoding_format": {"type": "string", "enum": ["float", "base64"]},
            "dimensions": {"type": "integer", "minimum": 1},
            "user": {"type": "string"},
        },
    }
    example = {"model": models[0], "input": ["Where is my parcel?", "I want my money back."]}
    operation = _plain("Vectors of texts, as OpenAI's API gives them", "OpenAI")
    operation["requestBody"] = _body(schema, {"two texts": {"value": example}})
    return operation


def _text(models: list[str], summary: str, field: str, schema: Json, example: Any) -> Json:
    known = {"model": {"type": "string", "enum": models}, field: schema, **_SAMPLING}
    body = {"type": "object", "required": ["model", field], "properties": known}
    operation = _plain(summary, "OpenAI")
    example = {"model": models[0], field: example, "max_tokens": 64}
    operation["requestBody"] = _body(body, {"one": {"value": example}})
    operation["responses"]["200"]["content"]["text/event-stream"] = {}
    return operation


def _v2_paths(catalogue: Catalogue) -> Json:
    model = _path_parameter("model", "identity_fp32", sorted(catalogue.models))
    version = _path_parameter("version", "1")
    one = "/v2/models/{model}"
    return {
        "/v2": {"get": _plain("The server's name and extensions", "V2")},
        "/v2/health/live": {"get": _plain("Whether the gateway runs", "V2")},
        "/v2/health/ready": {"get": _plain("Whether every pipeline answers", "V2")},
        "/v2/models/stats": {"get": _plain("The counts of every model that you may read", "V2")},
        **_v2_model_paths(one, [model], "a model"),
        **_v2_model_paths(f"{one}/versions/{{version}}", [model, version], "a version of a model"),
    }


def _v2_model_paths(prefix: str, parameters: list[Json], what: str) -> Json:
    infer = _plain(f"Infer tensors with {what} (JSON, or the binary tensor data extension)", "V2")
    infer["requestBody"] = _body({"type": "object"}, {"identity": {"value": _IDENTITY_BODY}})
    generate, stream = (_plain(f"{how} with {what}: inputs by name", "V2") for how in _GENERATE)
    generate["requestBody"] = stream["requestBody"] = _body(
        {"type": "object"}, {"identity": {"value": {"INPUT0": [1.5, 2, 3]}}}
    )
    return {
        prefix: {"parameters": parameters, "get": _plain(f"The tensors of {what}", "V2")},
        f"{prefix}/ready": {
            "parameters": parameters,
            "get": _plain(f"Whether {what} answers", "V2"),
        },
        f"{prefix}/infer": {"parameters": parameters, "post": infer},
        f"{prefix}/generate": {"parameters": parameters, "post": generate},
        f"{prefix}/generate_stream": {"parameters": parameters, "post": stream},
        f"{prefix}/config": {
            "parameters": parameters,
            "get": _plain(f"The config of {what}", "V2"),
        },
        f"{prefix}/stats": {"parameters": parameters, "get": _plain(f"The counts of {what}", "V2")},
    }


def _path_parameter(name: str, example: str, values: list[str] | None = None) -> Json:
    schema: Json = {"type": "string"} | ({"enum": values} if values else {})
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


def _plain(summary: str, tag: str) -> Json:
    return {"tags": [tag], "summary": summary, "responses": _responses({}, "application/json")}


def _body(schema: Json, examples: Mapping[str, Any]) -> Json:
    content = {"application/json": {"schema": schema, "examples": examples}}
    return {"required": True, "content": content}


def _with_form(body: Json, row: Mapping[str, Any]) -> Json:
    """The same body as a multipart form too, where the row has a field for a file."""
    fields = row["properties"]
    files = {
        name: {"type": "string", "format": "binary", "description": field.get("description", "")}
        for name, field in fields.items()
        if field.get("x-bytes")
    }
    if files:
        schema = {**row, "properties": {**fields, **files}}
        body["content"]["multipart/form-data"] = {"schema": schema}
    return body


def _responses(schema: Json, error_type: str) -> Json:
    is_problem = error_type == "application/problem+json"
    error = {"$ref": "#/components/schemas/Problem"} if is_problem else {"type": "object"}
    failures = {
        status: {"description": text, "content": {error_type: {"schema": error}}}
        for status, text in _ERRORS.items()
    }
    ok = {"description": "OK", "content": {"application/json": {"schema": schema}}}
    return {"200": ok, **failures}
