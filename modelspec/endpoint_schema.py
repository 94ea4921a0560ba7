"""The endpoint schema of a pipeline: how the gateway exposes its tensors as a REST endpoint.

An endpoint schema is JSON Schema with a few extra keywords, so that one document validates
requests, describes the endpoint in OpenAPI and binds fields to tensors:

- ``x-tensor``: the field is this tensor. A scalar is one element per row; an array is the row.
- ``x-parameter``: the field is this request parameter (a string, a number or a boolean).
- ``x-bytes``: the field is raw bytes: ``{"b64": "..."}`` in JSON, a file in multipart.
- ``x-null``: where the field may be null, the text that its tensor then has (a number becomes NaN).
- ``x-count`` on an array of objects (*records*): the tensor that says how many of them are real;
  the object's fields are tensors of equal length, zipped.

The endpoint schema is stored in the model's config as the parameter ``tidegate.endpoint``; the
gateway reads it from Triton's ModelConfig and needs neither this package nor a restart.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class EndpointSchema:
    """``request`` and ``response`` are object schemas for one row; ``example`` is one request.

    ``openai`` maps the OpenAI routes that this pipeline can serve to the binding that each needs,
    such as ``{"embeddings": {"text": "text", "vector": "sentence_embedding",
    "tokens": "token_count"}}``.
    """

    purpose: str
    request: Schema
    response: Schema
    example: Mapping[str, Any]
    card: Mapping[str, Any] = field(default_factory=dict)
    openai: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return _compact(
            {
                "purpose": self.purpose,
                "request": self.request,
                "response": self.response,
                "example": self.example,
                "card": self.card,
                "openai": self.openai,
            }
        )

    def tensors(self) -> set[str]:
        """Every tensor that a field is bound to."""
        return _bound_tensors(self.request) | _bound_tensors(self.response)


def _bound_tensors(schema: Schema) -> set[str]:
    names = {schema[key] for key in ("x-tensor", "x-count") if key in schema}
    for child in schema.get("properties", {}).values():
        names |= _bound_tensors(child)
    if isinstance(schema.get("items"), Mapping):
        names |= _bound_tensors(schema["items"])
    return names


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
