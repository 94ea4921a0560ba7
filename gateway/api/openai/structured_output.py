"""JSON Schemas that a model's output is bound to, checked before the engine compiles them.

An engine turns the schema into a grammar. What no grammar of JSON can keep (``uniqueItems``,
``not``) is refused by name: engines ignore it, and their output would then not fit the schema.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jsonschema_rs
import orjson

from gateway.api.openai.fields import refuse_keys
from gateway.errors import SHOWN, InvalidRequest, quoted
from gateway.models.text_binding import Binding

Json = dict[str, Any]
MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH = 64 * 1024, 32
_SUBSCHEMA = frozenset(("additionalProperties", "items", "propertyNames"))
_SUBSCHEMAS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
_NAMED_SUBSCHEMAS = frozenset(("$defs", "definitions", "properties", "patternProperties"))
_NOTES = ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly")
_ANNOTATIONS = frozenset(("$schema", "$id", "$comment", "discriminator", *_NOTES))
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_SIZES = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_PLAIN = frozenset(("type", "enum", "const", "required", "pattern", "format", *_NUMBERS, *_SIZES))
_SUPPORTED = _SUBSCHEMA | _SUBSCHEMAS | _NAMED_SUBSCHEMAS | _ANNOTATIONS | _PLAIN | {"$ref"}


def response_grammar(
    value: Any, binding: Binding, field: str = "response_format", is_flat: bool = False
) -> Json | None:
    """The ``structured_outputs`` for the format that a request's ``field`` asks for, None for plain
    text. A flat one has its schema beside its type. Raises InvalidRequest, which names what is
    wrong."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{field}' must be an object", param=field)
    kind = value.get("type")
    if kind in ("text", "json_object"):
        refuse_keys(value, ("type",), field)
        return {"json_object": True} if kind == "json_object" else None
    if kind != "json_schema":
        raise InvalidRequest(
            f"'{field}' of type {quoted(kind)} is not supported: use json_schema, "
            "json_object or text",
            param=f"{field}.type",
        )
    declared, where = value.get("json_schema"), f"{field}.json_schema"
    if is_flat:
        declared, where = {key: value[key] for key in value if key != "type"}, field
    if not isinstance(declared, dict) or "schema" not in declared:
        raise InvalidRequest(f"'{where}' must be an object with 'schema'", param=where)
    if not is_flat:
        refuse_keys(value, ("type", "json_schema"), field)
    refuse_keys(declared, ("name", "description", "schema", "strict"), where)
    for name in ("name", "description"):
        if not isinstance(declared.get(name), str | None):
            raise InvalidRequest(f"'{where}.{name}' must be a string", param=f"{where}.{name}")
    if not isinstance(declared.get("strict"), bool | None):
        raise InvalidRequest(f"'{where}.strict' must be true or false", param=f"{where}.strict")
    check_schema(declared["schema"], f"{where}.schema", binding)
    return {"json": declared["schema"]}


def check_schema(schema: Any, where: str, binding: Binding, is_grammar: bool = True) -> None:
    """Raises InvalidRequest unless this is a JSON Schema within our bounds and, if it is to be a
    grammar, one whose every keyword the model's engine keeps."""
    if not isinstance(schema, dict):
        raise InvalidRequest(f"'{where}' must be a JSON Schema, an object", param=where)
    if len(orjson.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise InvalidRequest(
            f"'{where}' is over {MAX_SCHEMA_BYTES} bytes: send a smaller schema", param=where
        )
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        raise InvalidRequest(
            f"'{where}' is nested deeper than {MAX_SCHEMA_DEPTH}: send a flatter schema",
            param=where,
        )
    if is_grammar:
        keywords = binding.schema_keywords
        _Walk(schema, where, _SUPPORTED if keywords is None else keywords & _SUPPORTED).check(
            schema
        )
    try:
        jsonschema_rs.meta.validate(schema)
    except (jsonschema_rs.ValidationError, ValueError) as error:
        reason = str(getattr(error, "message", error))[:200]
        raise InvalidRequest(f"'{where}' is not a JSON Schema: {reason}", param=where) from None


def _depth(schema: Json) -> int:
    """How deep objects and arrays are nested, or one more than allowed."""
    level: list[Any] = [schema]
    for depth in range(MAX_SCHEMA_DEPTH + 1):
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list)
        ]
        if not level:
            return depth + 1
    return MAX_SCHEMA_DEPTH + 1


class _Walk:
    """Visits every subschema of a schema, which is nested no deeper than allowed."""

    def __init__(self, root: Json, where: str, keywords: Collection[str]) -> None:
        self._root, self._where = root, where
        self._keywords = keywords

    def check(self, schema: Any) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise self._wrong("has a subschema that is not an object")
        for keyword, value in schema.items():
            if keyword not in self._keywords:
                raise self._wrong(f"has the keyword {quoted(keyword)}, which is not supported")
            if keyword in _SUBSCHEMA:
                self.check(value)
            elif keyword in _SUBSCHEMAS:
                for item in value if isinstance(value, list) else [value]:
                    self.check(item)
            elif keyword in _NAMED_SUBSCHEMAS:
                for item in value.values() if isinstance(value, dict) else [value]:
                    self.check(item)
            elif keyword == "$ref":
                self._resolve(value)

    def _resolve(self, reference: Any) -> None:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise self._wrong(f"has a $ref outside of itself, {quoted(reference)}")
        if reference != "#" and not reference.startswith("#/"):
            raise self._wrong(f"has a $ref to an anchor, {quoted(reference)}, not to a path")
        target: Any = self._root
        for part in reference[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list):
                raise self._wrong(f"has a $ref into a list, {quoted(reference)}: name that schema")
            if not isinstance(target, dict) or key not in target:
                raise self._wrong(f"has a $ref to nothing, {quoted(reference)}")
            target = target[key]

    def _wrong(self, problem: str) -> InvalidRequest:
        return InvalidRequest(f"'{self._where}' {problem}: change it", param=self._where[:SHOWN])


def rebased(schema: Mapping[str, Any], root: str) -> Json:
    """The schema as part of another one, at the JSON pointer ``root`` of it: its references are
    to itself again."""

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(item) for item in value]
        if not isinstance(value, dict):
            return value
        moved = {key: move(item) for key, item in value.items()}
        if isinstance(value.get("$ref"), str):
            moved["$ref"] = f"{root}{value['$ref'][1:]}"
        return moved

    result: Json = move(dict(schema))
    return result
