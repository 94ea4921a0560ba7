"""The OpenAPI document, rendered from the catalogue: every declared pipeline is documented."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from starlette.routing import BaseRoute

from gateway.api.openapi.operations import (
    INFER,
    QUERY,
    READ,
    TASK,
    V2,
    Json,
    body_of,
    openai_operation,
    responses,
)
from gateway.api.openapi.schemas import SCHEMAS, TEXT, of
from gateway.models.catalogue import TEXT_ROUTES, Catalogue, Model
from gateway.models.compiled_endpoint import GROUNDED_REPLY, CompiledEndpoint

_KEY = {"type": "http", "scheme": "bearer", "description": "An API key, `tg_...`, or a token."}
_AZURE = {"type": "apiKey", "in": "header", "name": "api-key", "description": "The same key."}
_INTRODUCTION = """
One gateway to the models that you may call. Every request needs a key: send
`Authorization: Bearer KEY` (or `api-key: KEY`). Your operator creates one with
`tidegate keys create NAME`. `/healthz` and `/readyz` need none.

- **tasks**: plain JSON, one endpoint per pipeline.
- **OpenAI**: a stock OpenAI client works unchanged; the model's id is the pipeline's name.
- **V2**: the Open Inference Protocol, as KServe's and Triton's clients speak it.

Every response has `x-request-id`, and `server-timing` in milliseconds. All APIs share one set of
error codes, each in the shape of its API: branch on the code, show the message. 429 and 503 say in
`retry-after` when to try again. A body may have 32 MiB, unless your operator has set another limit.
""".strip()

# path -> operation, summary, schema, failures
_V2_SERVER: dict[str, tuple[str, str, str, tuple[int, ...]]] = {
    "/v2": ("v2_server", "The server's name and extensions", "V2Server", READ),
    "/v2/health/live": ("v2_live", "Whether the gateway runs", "V2Live", READ),
    "/v2/health/ready": ("v2_ready", "Whether every pipeline answers", "V2Ready", (*READ, 503)),
    "/v2/models": ("v2_models", "The models that you may read", "V2Models", READ),
    "/v2/models/stats": (
        "v2_statistics",
        "The statistics of every model that you may read",
        "V2Statistics",
        (*READ, 502, 503, 504),
    ),
}
_V2_MODEL: dict[str, tuple[str, str, str]] = {  # below a model, or one of its versions
    "": ("metadata", "The tensors of {}", "V2Metadata"),
    "/ready": ("ready", "Whether {} answers", ""),
    "/config": ("config", "The config of {}", "V2Config"),
    "/stats": ("stats", "The statistics of {}", "V2Statistics"),
    "/infer": (
        "infer",
        "Infer tensors with {} (JSON, or the binary tensor data extension)",
        "V2InferResponse",
    ),
    "/generate": (
        "generate",
        "Generate one response with {}: inputs by name",
        "V2GenerateResponse",
    ),
    "/generate_stream": (
        "generate_stream",
        "Generate responses as server-sent events with {}: inputs by name",
        "V2GenerateResponse",
    ),
}
_NUMERIC_PREFIXES = frozenset({"INT", "UIN", "FP1", "FP3", "FP6"})  # of dtypes
_MAX_EXAMPLE_VALUES = 64
_STREAM = {
    "type": "boolean",
    "default": False,
    "description": "Server-sent events: `passages`, a `delta` for each sentence, `reply`; `[DONE]` "
    "last.",
}
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def describe(
    title: str, version: str, catalogue: Catalogue, control_routes: Sequence[BaseRoute] = ()
) -> Json:
    """The document: every API's routes, over the models of this catalogue. FastAPI describes the
    control routes."""
    control = get_openapi(title=title, version=version, routes=control_routes)
    control_schemas = control.get("components", {}).get("schemas", {})
    tasks = {
        f"/v1/{model.name}": {"post": _task(model, model.endpoint_schema)}
        for model in catalogue.public
        if model.endpoint_schema and not model.decoupled
    }
    tags = ("tasks", "OpenAI", "V2", "health")
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": _INTRODUCTION},
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in tags],
        "paths": tasks
        | _relevance_paths(catalogue)
        | _openai_paths(catalogue)
        | _v2_paths(catalogue)
        | _of_control(control, catalogue),
        "components": {
            "schemas": SCHEMAS | control_schemas,
            "securitySchemes": {"key": _KEY, "api-key": _AZURE},
        },
        "security": [{"key": []}, {"api-key": []}],
    }


def _of_control(control: Json, catalogue: Catalogue) -> Json:
    """FastAPI's paths; those of one model with the models' names, as everywhere else, or without
    a model not at all."""
    names = [model.name for model in catalogue.public]
    paths: Json = {}
    for path, item in control["paths"].items():
        if "{model}" not in path:
            paths[path] = item
        elif names:
            operation = {key: value for key, value in item["get"].items() if key != "parameters"}
            parameter = _path_parameter("model", names[0], names)
            paths[path] = {"parameters": [parameter], "get": operation}
    return paths


def _task(model: Model, endpoint_schema: CompiledEndpoint) -> Json:
    schema = endpoint_schema.schema
    row, response, example = schema.request, schema.response, schema.example
    batch = {
        "type": "object",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {"inputs": {"type": "array", "minItems": 1, "maxItems": 1024, "items": row}},
    }
    outputs = {
        "type": "object",
        "required": ["outputs"],
        "properties": {"outputs": {"type": "array", "items": response}},
    }
    examples = {"one": {"value": example}, "several": {"value": {"inputs": [example, example]}}}
    card = "\n".join(f"- **{key}**: {_text(value)}" for key, value in schema.card.items())
    single: Json = dict(row)
    if GROUNDED_REPLY in schema.openai:
        single["properties"] = {**row["properties"], "stream": _STREAM}
    operation: Json = {
        "tags": ["tasks"],
        "summary": schema.purpose,
        "description": card,
        "operationId": model.name,
        "requestBody": _with_multipart(body_of({"oneOf": [single, batch]}, examples), row),
        "responses": responses(TASK, {"oneOf": [response, outputs]}, INFER),
    }
    if GROUNDED_REPLY in schema.openai:
        content = operation["responses"]["200"]["content"]
        content["text/event-stream"] = {"schema": TEXT}
    return operation


def _text(value: object) -> str:
    """A card's value, to read: lists without brackets, "macro-F1 0.84 (127 held-out questions)"."""
    if isinstance(value, list):
        return "; ".join(map(_text, value))
    if isinstance(value, dict) and {"name", "value"} <= value.keys():
        data = f" ({value['data']})" if "data" in value else ""
        return f"{value['name']} {value['value']}{data}"
    return str(value)


def _openai_paths(catalogue: Catalogue) -> Json:
    list_models = openai_operation(
        "The pipelines that can be called, as OpenAI lists models",
        "list_models",
        "OpenAIModels",
        READ,
    )
    paths: Json = {"/v1/models": {"get": list_models}}
    names = [model.name for model in catalogue.public]
    if names:
        get_model = openai_operation(
            "One pipeline, as OpenAI describes a model", "get_model", "OpenAIModel", (*READ, 404)
        )
        parameter = _path_parameter("model", names[0], names)
        paths["/v1/models/{model}"] = {"parameters": [parameter], "get": get_model}
    embedding_models = [
        model.name
        for model in catalogue.public
        if model.endpoint_schema and "embeddings" in model.endpoint_schema.openai
    ]
    if embedding_models:
        paths["/v1/embeddings"] = {"post": _embeddings(embedding_models)}
    text_models = [
        model
        for model in catalogue.public
        if model.endpoint_schema and not TEXT_ROUTES.isdisjoint(model.endpoint_schema.openai)
    ]
    if not text_models:
        return paths
    from gateway.api.openapi.openai_text import describe as describe_text_routes

    return paths | describe_text_routes(text_models)


def _embeddings(models: list[str]) -> Json:
    text = {"type": "string", "minLength": 1}
    schema = {
        "type": "object",
        "required": ["model", "input"],
        "additionalProperties": False,
        "properties": {
            "model": {**TEXT, "enum": models},
            "input": {"oneOf": [text, {"type": "array", "items": text, "minItems": 1}]},
            "encoding_format": {"type": "string", "enum": ["float", "base64"]},
            "dimensions": {"type": "integer", "minimum": 1},
            "user": {"type": "string"},
        },
    }
    example = {"model": models[0], "input": ["Where is my parcel?", "I want my money back."]}
    operation = openai_operation(
        "Vectors of texts, as in OpenAI's API", "create_embeddings", "Embeddings", INFER
    )
    operation["requestBody"] = body_of(schema, {"two texts": {"value": example}})
    return operation


def _relevance_paths(catalogue: Catalogue) -> Json:
    models = [
        model.name
        for model in catalogue.public
        if model.endpoint_schema and model.endpoint_schema.compares_texts
    ]
    if not models:
        return {}
    from gateway.api.openapi.relevance import describe as describe_relevance

    return describe_relevance(models)


def _v2_paths(catalogue: Catalogue) -> Json:
    example = _example_model(catalogue)
    model = _path_parameter("model", example.name if example else "NAME", sorted(catalogue.models))
    version = _path_parameter("version", example.versions[-1] if example else "1")
    model_path = "/v2/models/{model}"
    return {
        **{
            path: {"get": _v2_operation(name, summary, schema, failures)}
            for path, (name, summary, schema, failures) in _V2_SERVER.items()
        },
        **_v2_model_paths(model_path, [model], "a model", "model", example),
        **_v2_model_paths(
            f"{model_path}/versions/{{version}}",
            [model, version],
            "a version of a model",
            "version",
            example,
        ),
    }


def _v2_operation(name: str, summary: str, schema: str, failures: Sequence[int]) -> Json:
    return {
        "tags": [V2.tag],
        "summary": summary,
        "operationId": name,
        "responses": responses(V2, of(schema) if schema else None, failures),
    }


def _v2_model_paths(
    prefix: str, parameters: list[Json], subject: str, infix: str, example: Model | None
) -> Json:
    paths: Json = {}
    for path, (name, summary, schema) in _V2_MODEL.items():
        body = _v2_body(path, example)
        failures = INFER if body else QUERY
        operation = _v2_operation(f"v2_{infix}_{name}", summary.format(subject), schema, failures)
        content = operation["responses"]["200"].get("content", {})
        if path == "/infer":
            content |= _BINARY
        elif path == "/generate_stream":
            content["text/event-stream"] = content.pop("application/json")
        if body:
            operation["requestBody"] = body
        paths[prefix + path] = {"parameters": parameters, "post" if body else "get": operation}
    return paths


def _v2_body(path: str, example: Model | None) -> Json:
    """The body of the POST routes, with an example for the model that the path names."""
    if path not in ("/infer", "/generate", "/generate_stream"):
        return {}
    schema = "V2InferRequest" if path == "/infer" else "V2GenerateRequest"
    value = _infer_example(example) if path == "/infer" else _generate_example(example)
    body = body_of(of(schema), {example.name: {"value": value}} if example else {})
    if path == "/infer":
        body["content"] |= _BINARY
    return body


def _example_model(catalogue: Catalogue) -> Model | None:
    """A model whose inputs' metadata suffice for a working example: preferably numbers only."""
    return min(
        (model for model in catalogue.models.values() if not model.decoupled and model.versions),
        key=lambda model: (
            model.name != "identity_fp32",
            any(meta.dtype[:3] not in _NUMERIC_PREFIXES for meta in model.inputs.values()),
            model.name,
        ),
        default=None,
    )


def _values(dtype: str, count: int) -> list[object]:
    """``count`` elements of a dtype."""
    if dtype == "BYTES":
        return ["Where is my parcel?"] * count
    if dtype == "BOOL":
        return [True] * count
    return [(1.5 if dtype.startswith("FP") else 1)] * count


def _shape(model: Model, dims: Sequence[int]) -> list[int]:
    open_dim = 1 if any(meta.dtype == "BYTES" for meta in model.inputs.values()) else 3
    shape = [open_dim if dim < 0 else dim for dim in dims]
    return [1, *shape] if model.max_batch_size else shape


def _infer_example(model: Model | None) -> Json:
    if model is None:
        return {"inputs": []}
    inputs = []
    for meta in model.inputs.values():
        shape = _shape(model, meta.dims)
        count = math.prod(shape)
        if meta.optional or count > _MAX_EXAMPLE_VALUES:
            continue
        data = _values(meta.dtype, count)
        inputs.append({"name": meta.name, "shape": shape, "datatype": meta.dtype, "data": data})
    return {"inputs": inputs}


def _generate_example(model: Model | None) -> Json:
    return {entry["name"]: entry["data"] for entry in _infer_example(model)["inputs"]}


def _path_parameter(name: str, example: str, values: list[str] | None = None) -> Json:
    schema: Json = {"type": "string"} | ({"enum": values} if values else {})
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


def _with_multipart(body: Json, row: Mapping[str, Any]) -> Json:
    """The body, also as a multipart form where the row has a field for a file."""
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
