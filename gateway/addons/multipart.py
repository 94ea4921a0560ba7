"""A multipart form -> one row of a face: how a file is sent without base64.

    curl -F scan=@page.png https://gateway/v1/PIPELINE

A field bound with ``x-bytes`` is the part's bytes. Any other field is text: taken as it is where
the face wants a string, and read as JSON where it wants a number, a boolean, a list or an object.
"""

import base64
from collections.abc import Mapping
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from gateway.errors import Malformed
from gateway.http.json_body import parse_json
from gateway.models.face import Face

MAX_PARTS = 64
# What of a file is shown to the schema, which cannot see bytes: enough to tell it from nothing.
_SHOWN_BYTES = 48


def read_form(face: Face, content_type: bytes, body: bytes) -> dict[str, Any]:
    """The row in the form, checked against the face; Malformed says what is wrong with it."""
    binary = {binding.field for binding in face.bindings if binding.is_bytes}
    if not binary:
        raise Malformed("this endpoint has no field for a file: send JSON")
    declared: Mapping[str, Any] = face.raw["request"]["properties"]
    row: dict[str, Any] = {}
    shown: dict[str, Any] = {}
    for field, data in _parts(content_type, body):
        if field not in declared:
            raise Malformed(f"there is no field {field[:64]!r}: send {', '.join(declared)}")
        if field in row:
            raise Malformed(
                f"the form has {field!r} twice: send several rows as JSON, {{'inputs': [...]}}",
                param=field,
            )
        if field in binary:
            row[field] = data
            shown[field] = {"b64": base64.b64encode(data[:_SHOWN_BYTES]).decode()}
        else:
            row[field] = shown[field] = _value(field, declared[field], data)
    face.check(shown, "")
    return row


def _value(field: str, schema: Mapping[str, Any], data: bytes) -> Any:
    try:
        if schema.get("type", "string") != "string":
            return parse_json(data)
        return data.decode()
    except Malformed:
        raise Malformed(f"{field}: write it as JSON, such as 1 or true", param=field) from None
    except UnicodeDecodeError:
        raise Malformed(f"{field} is not UTF-8: encode it as UTF-8", param=field) from None


def _parts(content_type: bytes, body: bytes) -> list[tuple[str, bytes]]:
    """Each part's field name and content."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Malformed("Content-Type has no boundary: let your HTTP client set the header")
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise Malformed("the body is not a multipart form with the header's boundary") from None
    if not form.ended:
        raise Malformed("the form is cut off: its last boundary is missing")
    return form.parts


class _Form:
    """Collects what the parser finds; its methods are the parser's callbacks."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, bytes]] = []
        self.ended = False
        self._key = self._header = b""
        self._disposition = b""
        self._data: list[bytes] = []

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise Malformed(f"the form has more than {MAX_PARTS} parts")
        self._disposition, self._data = b"", []

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._key += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_end(self) -> None:
        if self._key.lower() == b"content-disposition":
            self._disposition = self._header
        self._key = self._header = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _end(self) -> None:
        kind, options = parse_options_header(self._disposition)
        name = options.get(b"name")
        if kind != b"form-data" or not name:
            raise Malformed("a part of the form has no name: name it in Content-Disposition")
        self.parts.append((name.decode("utf-8", "replace"), b"".join(self._data)))

    def _finish(self) -> None:
        self.ended = True
