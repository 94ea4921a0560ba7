"""The API's description, rendered from the catalogue: a pipeline declared is documented."""

from collections.abc import Mapping
from typing import Any

from gateway.addons import load
from gateway.models.catalogue import TEXT_ROUTES, Catalogue, Model
from gateway.models.face import Face

Json = dict[str, Any]
_TEXT: Json = {"type": "string"}
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        **dict.fromkeys(("type", "title", "instance", "request_id"), _TEXT),
        "status": {"type": "integer"},
        "detail": {**_TEXT, "description": "What is wrong and what to do."},
        "code": {**_TEXT, "description": "Stable: branch on this."},
        "param": {**_TEXT, "description": "The field that is wrong."},
    },
}
_KEY = {"type": "http", "scheme": "bearer", "description": "An API key, `tg_...`."}
_ERRORS = {
    "401": "No valid API key",
    "413": "The body is over the limit",
    "422": "The request does not fit the schema",
    "502": "The model failed",
    "503": "No capacity; see Retry-After",
    "504": "The deadline passed",
}
_V2 = {
    "/v2": "The server's name and extensions",
    "/v2/health/live": "Whether the gateway runs",
    "/v2/health/ready": "Whether every pipeline answers",
    "/v2/models": "The names of the models that you may read",
    "/v2/models/stats": "The counts of every model that you may read",
}
_V2_MODEL = {  # below a model, or a version of it
    "": "The tensors of {}",
    "/ready": "Whether {} answers",
    "/config": "The config of {}",
    "/stats": "The counts of {}",
    "/infer": "Infer tensors with {} (JSON, or the binary tensor data extension)",
    "/generate": "Generate one answer with {}: inputs by name",
    "/generate_stream": "Generate answers as server-sent events with {}: inputs by name",
}
_TENSOR = {"name": "INPUT0", "shape": [1, 3], "datatype": "FP32", "data": [1.5, 2, 3]}
_V2_BODIES: Json = {  # of those that are a POST
    "/infer": {"inputs": [_TENSOR]},
    "/generate": {"INPUT0": [1.5, 2, 3]},
    "/generate_stream": {"INPUT0": [1.5, 2, 3]},
}


_HEALTH: Json = {
    "/healthz": {
        "get": {
            "tags": ["health"],
            "summary": "Whether the gateway runs",
            "security": [],
            "responses": {"200": {"description": "OK"}},
        }
    },
    "/readyz": {
        "get": {
            "tags": ["health"],
            "summary": "Whether every pipeline answers",
            "security": [],
            "responses": {"200": {"description": "OK"}},
        }
    },
}


def describe(title: str, version: str, catalogue: Catalogue) -> Json:
    """The document: every API's routes, over the models of this catalogue."""
    tasks = {
        f"/v1/{model.name}": {"post": _task(model, model.face)}
        for model in catalogue.public
        if model.face and not model.decoupled
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": _HEALTH | tasks | _openai_paths(catalogue) | _v2_paths(catalogue),
        "components": {"schemas": {"Problem": _PROBLEM}, "securitySchemes": {"key": _KEY}},
        "security": [{"key": []}],
    }


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
        "summary": face.raw["purpose"],
        "description": card,
        "operationId": model.name,
        "requestBody": _with_form(body_of({"oneOf": [row, batch]}, examples), row),
        "responses": _responses({"oneOf": [answer, outputs]}, "application/problem+json"),
    }


def _openai_paths(catalogue: Catalogue) -> Json:
    every = plain("The pipelines that can be called, as OpenAI lists models", "OpenAI")
    paths: Json = {"/v1/models": {"get": every}}
    names = [model.name for model in catalogue.public]
    if names:
        one = plain("One pipeline, as OpenAI describes a model", "OpenAI")
        parameter = _path_parameter("model", names[0], names)
        paths["/v1/models/{model}"] = {"parameters": [parameter], "get": one}
    serving = [m.name for m in catalogue.public if m.face and "embeddings" in m.face.openai]
    if serving:
        paths["/v1/embeddings"] = {"post": _embeddings(serving)}
    texts = [m for m in catalogue.public if m.face and not TEXT_ROUTES.isdisjoint(m.face.openai)]
    return paths | (load("openai_paths")(texts) if texts else {})


def _embeddings(models: list[str]) -> Json:
    text = {"type": "string", "minLength": 1}
    schema = {
        "type": "object",
        "required": ["model", "input"],
        "additionalProperties": False,
        "properties": {
            "model": {**_TEXT, "enum": models},
            "input": {"oneOf": [text, {"type": "array", "items": text, "minItems": 1}]},
            "encoding_format": {"type": "string", "enum": ["float", "base64"]},
            "dimensions": {"type": "integer", "minimum": 1},
            "user": {"type": "string"},
        },
    }
    example = {"model": models[0], "input": ["Where is my parcel?", "I want my money back."]}
    operation = plain("Vectors of texts, as OpenAI's API gives them", "OpenAI")
    operation["requestBody"] = body_of(schema, {"two texts": {"value": example}})
    return operation


def _v2_paths(catalogue: Catalogue) -> Json:
    model = _path_parameter("model", "identity_fp32", sorted(catalogue.models))
    version = _path_parameter("version", "1")
    one = "/v2/models/{model}"
    return {
        **{path: {"get": plain(summary, "V2")} for path, summary in _V2.items()},
        **_v2_model_paths(one, [model], "a model"),
        **_v2_model_paths(f"{one}/versions/{{version}}", [model, version], "a version of a model"),
    }


def _v2_model_paths(prefix: str, parameters: list[Json], what: str) -> Json:
    paths: Json = {}
    for path, summary in _V2_MODEL.items():
        operation, example = plain(summary.format(what), "V2"), _V2_BODIES.get(path)
        if example:
            operation["requestBody"] = body_of({"type": "object"}, {"identity": {"value": example}})
        method = "post" if example else "get"
        paths[prefix + path] = {"parameters": parameters, method: operation}
    return paths


def _path_parameter(name: str, example: str, values: list[str] | None = None) -> Json:
    schema: Json = {"type": "string"} | ({"enum": values} if values else {})
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


def plain(summary: str, tag: str) -> Json:
    return {"tags": [tag], "summary": summary, "responses": _responses({}, "application/json")}


def body_of(schema: Json, examples: Mapping[str, Any]) -> Json:
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
