"""A pipeline's endpoint schema, compiled: JSON rows in, tensors out, and back again.

The endpoint schema travels in the model's config as JSON (its keywords are described in
docs/endpoint schemas.md). The
gateway never asks which task a pipeline does; it only follows the bindings.
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
VOCABULARY = "cl100k_base"  # of OpenAI's embedding models, and what its clients take by default


class EndpointSchemaError(ValueError):
    """The endpoint schema in a model's config cannot be used; the message says which part."""


class Binding(NamedTuple):
    """A field of the request and the tensor or request parameter that it is. ``null`` is what
    JSON's null is sent as, where the schema allows it: NaN, or the text of ``x-null``."""

    field: str
    target: str
    is_parameter: bool = False
    is_bytes: bool = False
    null: Any = math.nan


@dataclass(frozen=True)
class EndpointSchema:
    """``raw`` is the endpoint schema as declared; ``bindings`` are its request's fields."""

    raw: Mapping[str, Any]
    bindings: tuple[Binding, ...]
    validator: Any
    masked: Any  # the same; what is wrong is not repeated in its messages
    optional: frozenset[str]  # fields that null leaves out

    @classmethod
    def compile(cls, text: str, inputs: set[str], outputs: set[str]) -> "EndpointSchema":
        """The endpoint schema in ``text``; EndpointSchemaError when a field is bound to a tensor
        that is not there."""
        try:
            raw = orjson.loads(text)
            validator = jsonschema_rs.validator_for(raw["request"])
            masked = jsonschema_rs.validator_for(raw["request"], mask="the value")
            optional = frozenset(_optional(raw["request"]))
            bindings = tuple(_bindings(raw["request"]))
            wanted = set(_output_tensors(raw["response"]))
        except (ValueError, KeyError, TypeError) as error:
            raise EndpointSchemaError(f"the endpoint schema cannot be read: {error!r}") from error
        missing = {b.target for b in bindings if not b.is_parameter} - inputs | wanted - outputs
        if missing:
            raise EndpointSchemaError(
                f"the endpoint schema is bound to tensors that are not there: {sorted(missing)}"
            )
        return cls(raw, bindings, validator, masked, optional)

    @property
    def openai(self) -> Mapping[str, Mapping[str, Any]]:
        """The bindings for those of OpenAI's routes that this pipeline serves."""
        bindings: Mapping[str, Mapping[str, Any]] = self.raw.get("openai", {})
        return bindings

    def without_nulls(self, row: Any) -> Any:
        """The row without the optional fields that are null, where null means nothing else."""
        if not isinstance(row, dict) or all(value is not None for value in row.values()):
            return row
        return {k: v for k, v in row.items() if v is not None or k not in self.optional}

    def check(self, row: Any, where: str) -> None:
        """InvalidRequest names the first field of the row that does not fit, and how."""
        if self.validator.is_valid(row):
            return
        error = _first_error(self.validator if _is_short(row) else self.masked, row)
        names = [str(part)[:SHOWN] for part in error.instance_path]
        path = ".".join([where, *names] if where else names)
        raise InvalidRequest(f"{path or 'the body'}: {_short(error.message)}", param=path)

    def values(self, row: Row) -> dict[str, list[Any]]:
        """The row's tensors, flat. A field that is absent is no tensor."""
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
                f"field {name!r} is bound to nothing: x-tensor or x-parameter"
            )


def _output_tensors(schema: Mapping[str, Any]) -> Iterator[str]:
    yield from (schema[key] for key in ("x-tensor", "x-count") if key in schema)
    for child in schema.get("properties", {}).values():
        yield from _output_tensors(child)
    if isinstance(schema.get("items"), Mapping):
        yield from _output_tensors(schema["items"])


def _flat(value: Any, binding: Binding) -> list[Any]:
    if binding.is_bytes:
        return [_decoded(value, binding.field)]
    values = value if isinstance(value, list) else [value]
    return [binding.null if each is None else each for each in values]


def _decoded(value: Any, field: str) -> bytes:
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
    """Bytes become text; numbers stay an array, which orjson prints in their own precision."""
    if values.dtype == object:
        return [value.decode("utf-8", "replace") for value in values.reshape(-1)]
    return np.ascontiguousarray(values)


def _is_short(row: Any) -> bool:
    """Whether an error's message may repeat what is wrong."""
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
    """Some name keys of the client's, of any number and length."""
    message = _LONG_NAME.sub(r"'\1...'", message[:1000])
    return message if len(message) <= 200 else f"{message[:200]}..."


def _optional(schema: Mapping[str, Any]) -> Iterator[str]:
    """Fields that may be left out, and may not be null."""
    for name, field in schema["properties"].items():
        if name not in schema.get("required", ()) and not jsonschema_rs.is_valid(field, None):
            yield name
