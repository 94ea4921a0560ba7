"""``/v1/rerank`` and ``/v1/score`` in the OpenAPI document."""

from typing import Any

from gateway.api.openapi.operations import INFER, TASK, Json, body_of, responses
from gateway.api.openapi.schemas import TEXT, of
from gateway.render import COHERE_PATH

_SCORES = (
    "A cross-encoder reads query and passage together and gives a score from 0 to 1. An embedding "
    "model reads each by itself, and the score is the cosine of the vectors, from -1 to 1. Scores "
    "of different models cannot be compared."
)
_MAX = 1024
_NON_EMPTY: Json = {"type": "string", "minLength": 1}
_TEXTS: Json = {
    "oneOf": [_NON_EMPTY, {"type": "array", "items": _NON_EMPTY, "minItems": 1, "maxItems": _MAX}]
}


def describe(models: list[str]) -> Json:
    """The paths, for these models."""
    model: Json = {**TEXT, "enum": models}
    document: Json = {
        "oneOf": [
            _NON_EMPTY,
            {"type": "object", "required": ["text"], "properties": {"text": _NON_EMPTY}},
        ]
    }
    truncate: Json = {
        "type": "boolean",
        "description": "Cut what is too long instead of refusing it.",
    }
    rerank = _operation(
        "Documents by their relevance to a query, as in Cohere's and Jina's API",
        "rerank",
        "Rerank",
        ["model", "query", "documents"],
        {
            "model": model,
            "query": _NON_EMPTY,
            "documents": {"type": "array", "items": document, "minItems": 1, "maxItems": _MAX},
            "top_n": {"type": "integer", "minimum": 1, "description": "All without it."},
            "return_documents": {"type": "boolean", "default": False},
            "truncate": {**truncate, "default": True},
            "truncation": {"type": "boolean", "description": "Jina's name for `truncate`."},
            "user": TEXT,
        },
        {
            "model": models[0],
            "query": "Where is my parcel?",
            "documents": ["We ship within two days.", "Passwords expire after a year."],
            "top_n": 1,
            "return_documents": True,
        },
    )
    score = _operation(
        "A score for each pair of texts, as in vLLM's API",
        "score",
        "Scores",
        ["model", "text_1", "text_2"],
        {
            "model": model,
            "text_1": {**_TEXTS, "description": "One, or as many as in `text_2`."},
            "text_2": {**_TEXTS, "description": "One, or as many as in `text_1`."},
            "truncate": {**truncate, "default": False},
            "user": TEXT,
        },
        {
            "model": models[0],
            "text_1": "Where is my parcel?",
            "text_2": ["We ship within two days.", "Passwords expire after a year."],
        },
    )
    own_path = {
        **rerank,
        "summary": "The same as /v1/rerank, where Cohere's client looks for it",
        "operationId": "cohere_rerank",
    }
    return {
        "/v1/rerank": {"post": rerank},
        COHERE_PATH: {"post": own_path},
        "/v1/score": {"post": score},
    }


def _operation(
    summary: str, name: str, schema: str, required: list[str], properties: Json, example: Any
) -> Json:
    body: Json = {
        "type": "object",
        "required": required,
        "additionalProperties": False,
        "properties": properties,
    }
    return {
        "tags": [TASK.tag],
        "summary": summary,
        "description": _SCORES,
        "operationId": name,
        "requestBody": body_of(body, {"one": {"value": example}}),
        "responses": responses(TASK, of(schema), INFER),
    }
