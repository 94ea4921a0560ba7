"""Schemas that no pipeline declares: errors, OpenAI's responses, V2's requests and responses."""

from typing import Any

from modelspec.dtypes import ELEMENT_TYPES

Json = dict[str, Any]
TEXT: Json = {"type": "string"}
INTEGER: Json = {"type": "integer"}


def of(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: str, common: Json | None = None, **properties: Json) -> Json:
    """An object with these properties and the ``common`` ones; ``required`` has names, split at
    spaces."""
    return {
        "type": "object",
        "required": required.split(),
        "properties": {**properties, **(common or {})},
    }


def _list(item: Json) -> Json:
    return {"type": "array", "items": item}


def _nullable(schema: Json) -> Json:
    return {"oneOf": [schema, {"type": "null"}]}


_USAGE = _object(
    "prompt_tokens total_tokens",
    prompt_tokens=INTEGER,
    completion_tokens=INTEGER,
    total_tokens=INTEGER,
    prompt_tokens_details=_object("cached_tokens", cached_tokens=INTEGER),
)
_REASONS = ("stop", "length", "tool_calls", "content_filter")
_FINISH = {"type": ["string", "null"], "enum": [*_REASONS, None]}
_LOGPROBS = {"type": ["object", "null"], "description": "If requested; the sampled tokens."}
_CALLS = _list(_object("function", index=INTEGER, id=TEXT, type=TEXT, function={"type": "object"}))
_MESSAGE_PARTS: Json = {"reasoning": TEXT, "reasoning_content": TEXT, "tool_calls": _CALLS}
_COMMON = {"id": TEXT, "created": INTEGER, "model": TEXT}
_VALUES = {
    "type": "array",
    "items": {"type": ["number", "boolean", "string", "array"]},
    "description": "The elements, flat or nested like the shape.",
}
_TENSOR: Json = {
    "name": TEXT,
    "shape": _list(INTEGER),
    "datatype": {"type": "string", "enum": list(ELEMENT_TYPES)},
}
_PARAMETERS: Json = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}

SCHEMAS: Json = {
    "Problem": {
        "type": "object",
        "description": "An error, as in RFC 9457.",
        "required": ["type", "title", "status", "detail", "code", "request_id"],
        "properties": {
            **dict.fromkeys(("type", "title", "instance", "request_id"), TEXT),
            "status": INTEGER,
            "detail": {**TEXT, "description": "What is wrong and what to do."},
            "code": {**TEXT, "description": "Stable: branch on it."},
            "param": {**TEXT, "description": "The field that is wrong."},
        },
    },
    "OpenAIError": _object(
        "error",
        error=_object(
            "message type param code request_id",
            message={**TEXT, "description": "What is wrong and what to do."},
            type=TEXT,
            param={"type": ["string", "null"], "description": "The field that is wrong."},
            code={**TEXT, "description": "Stable: branch on it."},
            request_id=TEXT,
        ),
    ),
    "V2Error": _object("error", error={**TEXT, "description": "What is wrong and what to do."}),
    "OpenAIModel": _object(
        "id object created owned_by",
        id=TEXT,
        object={"type": "string", "const": "model"},
        created=INTEGER,
        owned_by=TEXT,
    ),
    "OpenAIModels": _object(
        "object data",
        object={"type": "string", "const": "list"},
        data=_list(of("OpenAIModel")),
    ),
    "Embeddings": _object(
        "object data model usage",
        object={"type": "string", "const": "list"},
        model=TEXT,
        usage=_USAGE,
        data=_list(
            _object(
                "object index embedding",
                object={"type": "string", "const": "embedding"},
                index=INTEGER,
                embedding={
                    "oneOf": [_list({"type": "number"}), TEXT],
                    "description": "Numbers, or their bytes (FP32, little endian) in base64.",
                },
            )
        ),
    ),
    "ChatCompletion": _object(
        "id object created model choices",
        _COMMON,
        object={"type": "string", "const": "chat.completion"},
        usage=_nullable(_USAGE),
        choices=_list(
            _object(
                "index message finish_reason",
                index=INTEGER,
                message=_object(
                    "role content",
                    _MESSAGE_PARTS,
                    role={"type": "string", "const": "assistant"},
                    content={"type": ["string", "null"]},
                ),
                logprobs=_LOGPROBS,
                finish_reason=_FINISH,
            )
        ),
    ),
    "ChatCompletionChunk": _object(
        "id object created model choices",
        _COMMON,
        object={"type": "string", "const": "chat.completion.chunk"},
        usage=_nullable(_USAGE),
        choices=_list(
            _object(
                "index delta finish_reason",
                index=INTEGER,
                delta={
                    "type": "object",
                    "properties": {"role": TEXT, "content": TEXT, **_MESSAGE_PARTS},
                },
                logprobs=_LOGPROBS,
                finish_reason=_FINISH,
            )
        ),
    ),
    "Completion": _object(
        "id object created model choices",
        _COMMON,
        object={"type": "string", "const": "text_completion"},
        usage=_nullable(_USAGE),
        choices=_list(
            _object(
                "index text finish_reason",
                index=INTEGER,
                text=TEXT,
                logprobs=_LOGPROBS,
                finish_reason=_FINISH,
            )
        ),
    ),
    "Response": _object(
        "id object created_at model status output",
        id=TEXT,
        object={"type": "string", "const": "response"},
        created_at=INTEGER,
        model=TEXT,
        status={"type": "string", "enum": ["in_progress", "completed", "incomplete"]},
        incomplete_details={
            "type": ["object", "null"],
            "description": "`reason`: max_output_tokens or content_filter.",
        },
        output=_list(
            _object(
                "id type status",
                id=TEXT,
                type={"type": "string", "enum": ["reasoning", "message", "function_call"]},
                status={"type": "string", "enum": ["in_progress", "completed", "incomplete"]},
                content=_list(_object("type text", type=TEXT, text=TEXT)),
                call_id=TEXT,
                name=TEXT,
                arguments=TEXT,
            )
        ),
        usage=_nullable(
            _object(
                "input_tokens output_tokens total_tokens",
                input_tokens=INTEGER,
                output_tokens=INTEGER,
                total_tokens=INTEGER,
            )
        ),
    ),
    "ResponseEvent": _object(
        "type sequence_number",
        type={"type": "string", "description": "As in OpenAI's API: `response.created`, ..."},
        sequence_number=INTEGER,
        response=of("Response"),
    ),
    "Rerank": _object(
        "id model results usage",
        id=TEXT,
        model=TEXT,
        usage=_USAGE,
        meta={"type": "object", "description": "As in Cohere's API."},
        results=_list(
            _object(
                "index relevance_score",
                index={**INTEGER, "description": "Of the document in the request."},
                relevance_score={"type": "number"},
                document={**_object("text", text=TEXT), "description": "If requested."},
            )
        ),
    ),
    "Scores": _object(
        "id object created model data usage",
        _COMMON,
        object={"type": "string", "const": "list"},
        usage=_USAGE,
        data=_list(
            _object(
                "index object score",
                index=INTEGER,
                object={"type": "string", "const": "score"},
                score={"type": "number"},
            )
        ),
    ),
    "Tokens": _object(
        "count max_model_len tokens",
        count=INTEGER,
        max_model_len=INTEGER,
        tokens=_list(INTEGER),
        token_strs=_nullable(_list(TEXT)),
    ),
    "TokensText": _object("prompt", prompt=TEXT),
    "V2Models": _object("models", models=_list(TEXT)),
    "V2Server": _object("name version extensions", name=TEXT, version=TEXT, extensions=_list(TEXT)),
    "V2Live": _object("live", live={"type": "boolean"}),
    "V2Ready": _object("ready", ready={"type": "boolean"}),
    "V2TensorMetadata": _object("name datatype shape", **_TENSOR),
    "V2Metadata": _object(
        "name versions platform inputs outputs",
        name=TEXT,
        versions=_list(TEXT),
        platform=TEXT,
        inputs=_list(of("V2TensorMetadata")),
        outputs=_list(of("V2TensorMetadata")),
    ),
    "V2InferRequest": _object(
        "inputs",
        id=TEXT,
        parameters=_PARAMETERS,
        inputs={
            "type": "array",
            "minItems": 1,
            "items": _object(
                "name shape datatype", {**_TENSOR, "parameters": _PARAMETERS, "data": _VALUES}
            ),
        },
        outputs=_list(_object("name", name=TEXT, parameters=_PARAMETERS)),
    ),
    "V2InferResponse": _object(
        "model_name model_version outputs",
        id=TEXT,
        model_name=TEXT,
        model_version=TEXT,
        parameters=_PARAMETERS,
        outputs=_list(
            _object("name shape datatype", {**_TENSOR, "parameters": _PARAMETERS, "data": _VALUES})
        ),
    ),
    "V2GenerateRequest": {
        "type": "object",
        "description": "The model's inputs by name: one element, or a flat list of them.",
        "properties": {"id": TEXT, "parameters": {"type": "object"}},
    },
    "V2GenerateResponse": {
        "type": "object",
        "description": "The model's outputs by name: one element, or a flat list of them.",
        "required": ["model_name", "model_version"],
        "properties": {"id": TEXT, "model_name": TEXT, "model_version": TEXT},
    },
    "V2Config": {"type": "object", "description": "Triton's ModelConfig.", "required": ["name"]},
    "V2Statistics": _object("model_stats", model_stats=_list({"type": "object"})),
}
