"""The endpoint schema of a pipeline: how the gateway exposes its tensors as a REST endpoint.

An endpoint schema is JSON Schema with a few extra keywords, so that one document validates
requests, describes the endpoint in OpenAPI and binds fields to tensors:

- ``x-tensor``: the field is this tensor. A scalar is one element per row; an array is the row.
- ``x-parameter``: the field is this request parameter (a string, a number or a boolean).
- ``x-bytes``: the field is raw bytes: ``{"b64": "..."}`` in JSON, a file in multipart.
- ``x-null``: where the field may be null, the text that its tensor then has (a number becomes NaN).
  A response leaves the field out instead.
- ``x-count`` on an array of objects (*records*): the tensor that says how many of them are real;
  the object's fields are tensors of equal length, zipped.

It is stored in the model's config as the parameter ``tidegate.endpoint``, from which the gateway,
the publisher, the watcher and the linter read it.
"""

import base64
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from modelspec.errors import DeclarationError

Schema = Mapping[str, Any]
Body = Mapping[str, Any]  # one request in the endpoint schema's form
_ABSENT = object()
PARTS = ("purpose", "request", "response", "example", "card", "openai")


class Binding(NamedTuple):
    """A field of the request and its tensor or request parameter. ``null`` is the value that stands
    for JSON's null, where the schema allows it: NaN, or the text of ``x-null``."""

    field: str
    target: str
    is_parameter: bool = False
    is_bytes: bool = False
    null: object = math.nan


class InvalidBase64(ValueError):
    """The ``field`` of a request has bytes that are not base64."""

    def __init__(self, field: str) -> None:
        super().__init__(f"{field}.b64 is not base64: encode the bytes again")
        self.field = field


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
    example: Body
    card: Mapping[str, Any] = field(default_factory=dict)
    openai: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "EndpointSchema":
        """The endpoint schema in a model's config; DeclarationError says what is wrong with it."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _refused(f"cannot be read: it is not JSON ({error})") from None
        if not isinstance(document, dict):
            raise _refused("cannot be read: it is not a JSON object")
        parts = {name: document.get(name, {}) for name in PARTS}
        parts["purpose"] = document.get("purpose", "")
        for name, value in parts.items():
            if not isinstance(value, str if name == "purpose" else dict):
                raise _refused(f"cannot be read: {name!r} has the wrong type")
        if not all(isinstance(route, dict) for route in parts["openai"].values()):
            raise _refused("cannot be read: 'openai' must map routes to objects")
        if not {"request", "response"} <= set(document):
            raise _refused("cannot be read: it needs a request and a response")
        for side in ("request", "response"):
            _check_object(side, parts[side])
        for name, schema in parts["request"].get("properties", {}).items():
            if not {"x-tensor", "x-parameter"} & set(schema):
                raise _refused(
                    f"has a field {name!r} bound to nothing: give it x-tensor or x-parameter"
                )
        for name, schema in _response_fields(parts["response"]):
            if "x-tensor" not in schema:
                raise _refused(f"has an output field {name!r} bound to nothing: give it x-tensor")
        return cls(**parts)

    def to_json(self) -> str:
        document = {name: getattr(self, name) for name in PARTS}
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"))

    @property
    def fields(self) -> Mapping[str, Schema]:
        """The schemas of a request's fields, by name."""
        fields: Mapping[str, Schema] = self.request.get("properties", {})
        return fields

    @cached_property
    def bindings(self) -> tuple[Binding, ...]:
        """The fields of a request, and what each is bound to."""
        return tuple(_bindings(self.fields))

    @cached_property
    def input_tensors(self) -> frozenset[str]:
        return frozenset(_bound_tensors(self.request))

    @cached_property
    def output_tensors(self) -> frozenset[str]:
        return frozenset(_bound_tensors(self.response))

    def values(self, body: Body) -> dict[str, list[Any]]:
        """Tensor -> the request's values, flat. An absent field has no tensor. InvalidBase64 for
        bytes that cannot be decoded."""
        return {
            binding.target: _flat(body[binding.field], binding)
            for binding in self.bindings
            if not binding.is_parameter and binding.field in body
        }

    def parameters(self, body: Body) -> dict[str, Any]:
        """Request parameter -> its value."""
        return {
            binding.target: body[binding.field]
            for binding in self.bindings
            if binding.is_parameter and binding.field in body
        }

    def render(self, tensors: Mapping[str, np.ndarray], index: int) -> dict[str, object]:
        """Row ``index`` of the output tensors (batch axis first) as the response's object. Texts
        are ``str``; numbers stay arrays and numpy's scalars, in their own precision."""
        return {
            name: value
            for name, schema in self.response.get("properties", {}).items()
            if (value := _rendered(schema, tensors, index)) is not _ABSENT
        }


def _refused(problem: str) -> DeclarationError:
    return DeclarationError(f"has an endpoint schema that {problem}")


def _check_object(path: str, schema: Schema) -> None:
    """Refuse an object schema whose properties are no schemas, or are bound to no names."""
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        raise _refused(f"cannot be read: the properties of {path!r} are not an object")
    for name, child in properties.items():
        if not isinstance(child, dict):
            raise _refused(f"cannot be read: {path}.{name} is not an object")
        for key in ("x-tensor", "x-parameter", "x-count"):
            if not isinstance(child.get(key, ""), str):
                raise _refused(f"cannot be read: {key} of {path}.{name} is not a name")
        if _is_records(child):
            _check_object(f"{path}.{name}.items", child["items"])


def _is_records(schema: Schema) -> bool:
    return isinstance(schema.get("items"), dict) and "properties" in schema["items"]


def _response_fields(response: Schema) -> Iterator[tuple[str, Schema]]:
    """The fields of a response that are tensors, those of records included."""
    for name, schema in response.get("properties", {}).items():
        if "x-tensor" not in schema and _is_records(schema):
            yield from schema["items"]["properties"].items()
        else:
            yield name, schema


def _bindings(fields: Mapping[str, Schema]) -> Iterator[Binding]:
    for name, schema in fields.items():
        if "x-tensor" in schema:
            null = schema.get("x-null", math.nan)
            is_bytes = bool(schema.get("x-bytes"))
            yield Binding(name, schema["x-tensor"], is_bytes=is_bytes, null=null)
        else:
            yield Binding(name, schema["x-parameter"], is_parameter=True)


def _bound_tensors(schema: Schema) -> Iterator[str]:
    yield from (schema[key] for key in ("x-tensor", "x-count") if key in schema)
    for child in schema.get("properties", {}).values():
        yield from _bound_tensors(child)
    if _is_records(schema):
        yield from _bound_tensors(schema["items"])


def _flat(value: Any, binding: Binding) -> list[object]:
    if binding.is_bytes:
        return [_decoded(value, binding.field)]
    values = value if isinstance(value, list) else [value]
    return [binding.null if element is None else element for element in values]


def _decoded(value: Any, field: str) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (ValueError, TypeError, KeyError):
        raise InvalidBase64(field) from None


def _rendered(schema: Schema, tensors: Mapping[str, np.ndarray], index: int) -> Any:
    if "x-tensor" in schema:
        row = tensors[schema["x-tensor"]][index]
        if schema.get("type") == "array":
            return _plain(row)
        value = _plain(row.reshape(-1)[:1])[0]
        return _ABSENT if "x-null" in schema and value == schema["x-null"] else value
    fields = schema["items"]["properties"]
    columns = [_plain(tensors[field["x-tensor"]][index]) for field in fields.values()]
    count = len(columns[0])
    if "x-count" in schema:
        count = int(tensors[schema["x-count"]][index].reshape(-1)[0])
    records = zip(*(column[:count] for column in columns), strict=True)
    return [dict(zip(fields, record, strict=True)) for record in records]


def _plain(values: np.ndarray) -> Any:
    """Bytes become text; numbers stay an array, which orjson prints in its own precision."""
    if values.dtype == object:
        return [value.decode("utf-8", "replace") for value in values.reshape(-1)]
    return np.ascontiguousarray(values)
