"""A multipart form -> one row of an endpoint schema: how a file is sent without base64.

    curl -F scan=@page.png https://gateway/v1/PIPELINE

A field bound with ``x-bytes`` is the part's bytes. Any other field is text: taken as it is where
the endpoint schema wants a string, and read as JSON where it wants a number, a boolean, a list or
an object.
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
from gateway.models.endpoint_schema import EndpointSchema

FORM_DATA = "multipart/form-data"
MAX_PARTS = 64
# What of a file is shown to the schema, which cannot see bytes: enough to tell it from nothing.
_SHOWN_BYTES = 48


def read_form(endpoint_schema: EndpointSchema, content_type: bytes, body: bytes) -> dict[str, Any]:
    """The row in the form, checked against the endpoint schema; InvalidRequest says what is wrong
    with it."""
    binary = {binding.field for binding in endpoint_schema.bindings if binding.is_bytes}
    if not binary:
        raise InvalidRequest("this endpoint has no field for a file: send JSON")
    declared: Mapping[str, Any] = endpoint_schema.raw["request"]["properties"]
    row: dict[str, Any] = {}
    shown: dict[str, Any] = {}
    for field, data in _parts(content_type, body):
        if field not in declared:
            raise InvalidRequest(f"there is no field {field[:64]!r}: send {', '.join(declared)}")
        if field in row:
            raise InvalidRequest(
                f"the form has {field!r} twice: send several rows as JSON, {{'inputs': [...]}}",
                param=field,
            )
        if field in binary:
            row[field] = data
            shown[field] = {"b64": base64.b64encode(data[:_SHOWN_BYTES]).decode()}
        else:
            row[field] = shown[field] = _value(field, declared[field], data)
    endpoint_schema.check(shown, "")
    return row


def _value(field: str, schema: Mapping[str, Any], data: bytes) -> Any:
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
    ended: list[bool] = []

    def add(name: bytes | None, data: bytes | None) -> None:
        if len(parts) == MAX_PARTS:
            raise InvalidRequest(f"the form has more than {MAX_PARTS} parts")
        parts.append(((name or b"").decode("utf-8", "replace"), data or b""))

    def add_file(file: Any) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.file_object.read())

    in_memory = {"MAX_MEMORY_FILE_SIZE": math.inf}  # the body has a limit of its own
    try:
        form = FormParser(
            FORM_DATA,
            lambda field: add(field.field_name, field.value),
            add_file,
            lambda: ended.append(True),
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
            "the body is not a multipart form with the header's boundary"
        ) from None
    if not ended:
        raise InvalidRequest("the form is cut off: its last boundary is missing")
    return parts
