"""Reads a multipart form as one row of an endpoint schema, so that files need no base64.

    curl -F scan=@page.png https://gateway/v1/PIPELINE

A field bound with ``x-bytes`` is the part's bytes. Any other field is text: taken as it is where
the endpoint schema declares a string, and parsed as JSON where it declares a number, a boolean, a
list or an object.
"""

import base64
import math
from collections.abc import Mapping
from typing import Any

from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from gateway.errors import InvalidRequest
from gateway.http.json_body import parse_json
from gateway.models.compiled_endpoint import CompiledEndpoint

FORM_DATA = "multipart/form-data"
MAX_PARTS = 64
# Of a file, the schema checks only a base64 excerpt, since JSON has no bytes: enough to tell an
# empty file.
_EXCERPT_BYTES = 48


def read_form(
    endpoint_schema: CompiledEndpoint, content_type: bytes, body: bytes
) -> dict[str, Any]:
    """The row in the form, checked against the endpoint schema; raises InvalidRequest, which says
    what is wrong."""
    binary_fields = {binding.field for binding in endpoint_schema.bindings if binding.is_bytes}
    if not binary_fields:
        raise InvalidRequest("this endpoint has no field for a file: send JSON")
    schemas = endpoint_schema.schema.fields
    row: dict[str, object] = {}
    checked_row: dict[str, object] = {}
    for field, data in _parts(content_type, body):
        if field not in schemas:
            raise InvalidRequest(f"unknown field {field[:64]!r}: send {', '.join(schemas)}")
        if field in row:
            raise InvalidRequest(
                f"the form has {field!r} twice: send several rows as JSON, {{'inputs': [...]}}",
                param=field,
            )
        if field in binary_fields:
            row[field] = data
            checked_row[field] = {"b64": base64.b64encode(data[:_EXCERPT_BYTES]).decode()}
        else:
            row[field] = checked_row[field] = _value(field, schemas[field], data)
    endpoint_schema.check(checked_row, "")
    return row


def _value(field: str, schema: Mapping[str, Any], data: bytes) -> object:
    try:
        if schema.get("type", "string") != "string":
            return parse_json(data)
        return data.decode()
    except InvalidRequest:
        raise InvalidRequest(f"{field}: write it as JSON, such as 1 or true", param=field) from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"{field} is not UTF-8: encode it as UTF-8", param=field) from None


def _parts(content_type: bytes, body: bytes) -> list[tuple[str, bytes]]:
    """Each part's field name and content."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidRequest("Content-Type has no boundary: let your HTTP client set the header")
    parts: list[tuple[str, bytes]] = []
    is_complete = False

    def add(name: bytes | None, data: bytes | None) -> None:
        if len(parts) == MAX_PARTS:
            raise InvalidRequest(f"the form has more than {MAX_PARTS} parts")
        parts.append(((name or b"").decode("utf-8", "replace"), data or b""))

    def add_file(file: Any) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.file_object.read())

    def end() -> None:
        nonlocal is_complete
        is_complete = True

    in_memory = {"MAX_MEMORY_FILE_SIZE": math.inf}  # the body has its own limit
    try:
        form = FormParser(
            FORM_DATA,
            lambda field: add(field.field_name, field.value),
            add_file,
            end,
            boundary,
            config=in_memory,
        )
        form.write(body)
        form.finalize()
    except FormParserError as error:
        if "Field name not found" in str(error):
            raise InvalidRequest(
                "a part of the form has no name: name it in Content-Disposition"
            ) from None
        raise InvalidRequest(
            "the body is not a multipart form with the boundary in Content-Type"
        ) from None
    if not is_complete:
        raise InvalidRequest("the form is truncated: its last boundary is missing")
    return parts
