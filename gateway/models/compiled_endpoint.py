"""A public model's endpoint: its endpoint schema (``modelspec.endpoint_schema``, which binds fields
to tensors), and the JSON Schema validators that check its requests.

The gateway does not know which task a pipeline does; it only follows the bindings.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema_rs
import numpy as np

from gateway.errors import SHOWN, InvalidRequest
from modelspec.endpoint_schema import Binding, EndpointSchema, InvalidBase64
from modelspec.errors import DeclarationError

Row = Mapping[str, Any]
GROUNDED_REPLY = "grounded_reply"  # the binding whose passages a language model may choose from
VOCABULARY = "cl100k_base"  # of OpenAI's embedding models, and the default of its clients


@dataclass(frozen=True)
class CompiledEndpoint:
    """``schema`` is what the model's config declares."""

    schema: EndpointSchema
    validator: Any
    masked: Any  # the same validator, whose messages do not quote the value
    optional: frozenset[str]  # fields for which null means that they are absent

    @classmethod
    def compile(cls, schema: EndpointSchema) -> "CompiledEndpoint":
        """DeclarationError if the schema of its requests is not a JSON Schema."""
        request = dict(schema.request)
        try:
            return cls(
                schema,
                jsonschema_rs.validator_for(request),
                jsonschema_rs.validator_for(request, mask="the value"),
                frozenset(_optional(schema)),
            )
        except (ValueError, TypeError) as error:
            raise DeclarationError(
                f"has an endpoint schema that cannot be read: {error!r}"
            ) from error

    @property
    def bindings(self) -> tuple[Binding, ...]:
        return self.schema.bindings

    @property
    def openai(self) -> Mapping[str, Mapping[str, object]]:
        """The bindings of the OpenAI routes that this pipeline serves."""
        return self.schema.openai

    @property
    def compares_texts(self) -> bool:
        """Whether it serves ``/v1/rerank`` and ``/v1/score``: a cross-encoder's binding says so,
        and vectors of texts are compared by their cosine."""
        return not {"rerank", "embeddings"}.isdisjoint(self.openai)

    def without_nulls(self, row: object) -> Any:
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
        try:
            return self.schema.values(row)
        except InvalidBase64 as error:
            raise InvalidRequest(str(error), param=error.field) from None

    def parameters(self, row: Row) -> dict[str, Any]:
        return self.schema.parameters(row)

    def render(self, tensors: Mapping[str, np.ndarray], index: int) -> dict[str, object]:
        """Row ``index`` of the output tensors as the response's object."""
        return self.schema.render(tensors, index)


def _is_short(row: object) -> bool:
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


def _optional(schema: EndpointSchema) -> Iterator[str]:
    """Fields that may be absent, but not null."""
    for name, field in schema.fields.items():
        if name not in schema.request.get("required", ()) and not jsonschema_rs.is_valid(
            dict(field), None
        ):
            yield name
