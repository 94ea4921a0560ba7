"""A pipeline's endpoint schema, compiled: from JSON rows to tensors and back.

The endpoint schema is JSON in the model's config (docs/own-models.md describes its keywords). The
gateway does not know which task a pipeline does; it only follows the bindings.
"""

import base64
import binascii
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jsonschema_rs
import numpy as np
import orjson

from gateway.errors import SHOWN, InvalidRequest

Row = Mapping[str, Any]
VOCABULARY = "cl100k_base"  # of OpenAI's embedding models, and the default of its clients


class EndpointSchemaError(ValueError):
    """The endpoint schema in a model's config is invalid; the message says which part."""


class Binding(NamedTuple):
    """A field of the request and its tensor or request parameter. ``null`` is the value that stands
    for JSON's null, where the schema allows it: NaN, or the text of ``x-null``."""

    field: str
    target: str
    is_parameter: bool = False
    is_bytes: bool = False
    null: Any = math.nan


@dataclass(frozen=True)
class EndpointSchema:
    """``raw`` is the endpoint schema as declared; ``bindings`` are the fields of its request."""

    raw: Mapping[str, Any]
    bindings: tuple[Binding, ...]
    validator: Any
    masked: Any  # the same validator, whose messages do not quote the value
    optional: frozenset[str]  # fields for which null means that they are absent

    @classmethod
    def compile(cls, text: str, inputs: set[str], outputs: set[str]) -> "EndpointSchema":
        """Compile the endpoint schema in ``text``. Raises EndpointSchemaError if it is invalid or a
        field is bound to a tensor that does not exist."""
        try:
            raw = orjson.loads(text)
            validator = jsonschema_rs.validator_for(raw["request"])
            masked = jsonschema_rs.validator_for(raw["request"], mask="the value")
            optional = frozenset(_optional(raw["request"]))
            bindings = tuple(_bindings(raw["request"]))
            output_tensors = set(_output_tensors(raw["response"]))
        except (ValueError, KeyError, TypeError) as error:
            raise EndpointSchemaError(f"the endpoint schema cannot be read: {error!r}") from error
        input_tensors = {binding.target for binding in bindings if not binding.is_parameter}
        missing = input_tensors - inputs | output_tensors - outputs
        if missing:
            raise EndpointSchemaError(
                f"the endpoint schema is bound to tensors that do not exist: {sorted(missing)}"
            )
        return cls(raw, bindings, validator, masked, optional)

    @property
    def openai(self) -> Mapping[str, Mapping[str, Any]]:
        """The bindings of the OpenAI routes that this pipeline serves."""
        bindings: Mapping[str, Mapping[str, Any]] = self.raw.get("openai", {})
        return bindings

    def without_nulls(self, row: Any) -> Any:
        """The row without the optional fields that are null, where null has no other meaning."""
        if not isinstance(row, dict) or all(value is not None for value in row.values()):
            return row
        return {
            field: value
            for field, value in row.items()
            if value is not None or field not in self.optional
        }

    def check(self, row: Any, where: str) -> None:
        """Raises InvalidRequest, which names the first invalid field of the row and the problem.
        ``where`` is the row's path in the body, '' if it is the body."""
        if self.validator.is_valid(row):
            return
        error = _first_error(self.validator if _is_short(row) else self.masked, row)
        names = [str(part)[:SHOWN] for part in error.instance_path]
        path = ".".join([where, *names] if where else names)
        raise InvalidRequest(f"{path or 'the body'}: {_short(error.message)}", param=path)

    def values(self, row: Row) -> dict[str, list[Any]]:
        """Tensor -> the row's values, flat. An absent field has no tensor."""
        return {
            binding.target: _flat(row[binding.field], binding)
            for binding in self.bindings
            if not binding.is_parameter and binding.field in row
        }

    def parameters(self, row: Row) -> dict[str, Any]:
        return {
            binding.target: row[binding.field]
            for binding in self.bindings
            if binding.is_parameter and binding.field in row
        }

    def render(self, tensors: Mapping[str, np.ndarray], index: int) -> dict[str, Any]:
        """Row ``index`` of the output tensors as the response's object."""
        return {
            name: _render(schema, tensors, index)
            for name, schema in self.raw["response"]["properties"].items()
        }


def _bindings(schema: Mapping[str, Any]) -> Iterator[Binding]:
    for name, field in schema["properties"].items():
        if "x-tensor" in field:
            null = field.get("x-null", math.nan)
            yield Binding(name, field["x-tensor"], is_bytes=bool(field.get("x-bytes")), null=null)
        elif "x-parameter" in field:
            yield Binding(name, field["x-parameter"], is_parameter=True)
        else:
            raise EndpointSchemaError(
                f"field {name!r} is bound to nothing: give it x-tensor or x-parameter"
            )


def _output_tensors(schema: Mapping[str, Any]) -> Iterator[str]:
    yield from (schema[key] for key in ("x-tensor", "x-count") if key in schema)
    for child in schema.get("properties", {}).values():
        yield from _output_tensors(child)
    if isinstance(schema.get("items"), Mapping):
        yield from _output_tensors(schema["items"])


def _flat(value: Any, binding: Binding) -> list[Any]:
    if binding.is_bytes:
        return [_decode(value, binding.field)]
    values = value if isinstance(value, list) else [value]
    return [binding.null if element is None else element for element in values]


def _decode(value: Any, field: str) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            f"{field}.b64 is not base64: encode the bytes again", param=field
        ) from None


def _render(schema: Mapping[str, Any], tensors: Mapping[str, np.ndarray], index: int) -> Any:
    if "x-tensor" in schema:
        row = tensors[schema["x-tensor"]][index]
        return _plain(row) if schema["type"] == "array" else _plain(row.reshape(-1)[:1])[0]
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


def _is_short(row: Any) -> bool:
    """Whether an error's message may quote the row's values."""
    return isinstance(row, dict) and all(
        isinstance(value, int | float | None) or (isinstance(value, str) and len(value) <= SHOWN)
        for value in row.values()
    )


def _first_error(validator: Any, row: Any) -> Any:
    try:
        validator.validate(row)
    except jsonschema_rs.ValidationError as error:
        return error
    raise AssertionError("the row is valid")


_LONG_NAME = re.compile(rf"'([^']{{{SHOWN - 3}}})[^']{{4,}}'")


def _short(message: str) -> str:
    """The message, shortened: some quote the client's keys, of any number and length."""
    message = _LONG_NAME.sub(r"'\1...'", message[:1000])
    return message if len(message) <= 200 else f"{message[:200]}..."


def _optional(schema: Mapping[str, Any]) -> Iterator[str]:
    """Fields that may be absent, but not null."""
    for name, field in schema["properties"].items():
        if name not in schema.get("required", ()) and not jsonschema_rs.is_valid(field, None):
            yield name
