"""A multipart form becomes a row of any endpoint schema that has a field for a file."""

import json

import httpx
import pytest

from gateway.api.openapi.document import describe
from gateway.api.tasks.multipart import MAX_PARTS, read_form
from gateway.api.tasks.routes import is_form
from gateway.errors import InvalidRequest
from gateway.models.catalogue import Catalogue, Model, TensorMeta
from gateway.models.compiled_endpoint import CompiledEndpoint
from modelspec.endpoint_schema import EndpointSchema

FILE = {
    "type": "object",
    "required": ["b64"],
    "properties": {"b64": {"type": "string", "minLength": 1}},
    "x-bytes": True,
}
REQUEST = {
    "type": "object",
    "required": ["scan"],
    "additionalProperties": False,
    "properties": {
        "scan": {**FILE, "x-tensor": "SCAN", "description": "A scan."},
        "mask": {**FILE, "x-tensor": "MASK"},
        "title": {"type": "string", "maxLength": 9, "x-tensor": "TITLE"},
        "weights": {"type": "array", "items": {"type": "number"}, "x-tensor": "WEIGHTS"},
        "greedy": {"type": "boolean", "x-parameter": "greedy"},
    },
}
RESPONSE = {"type": "object", "properties": {"score": {"type": "number", "x-tensor": "SCORE"}}}
EVERY_BYTE = bytes(range(256)) * 3 + b"\r\n--x--\r\n--"


def _compiled(request):
    raw = {"purpose": "p", "request": request, "response": RESPONSE, "example": {}}
    return CompiledEndpoint.compile(EndpointSchema.parse(json.dumps(raw)))


@pytest.fixture
def endpoint_schema():
    return _compiled(REQUEST)


def _form(files=None, data=None):
    """Content-Type and body, as a stock client writes them."""
    request = httpx.Request("POST", "http://gateway", files=files or {}, data=data)
    return request.headers["content-type"].encode(), request.read()


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"multipart/form-data; boundary=x", True),
        (b"Multipart/Form-Data;boundary=x", True),
        (b"application/json", False),
        (b"application/x-www-form-urlencoded", False),
        (b"", False),
    ],
)
def test_what_is_a_form(content_type, expected):
    assert is_form(content_type) is expected


def test_a_file_arrives_byte_for_byte(endpoint_schema):
    row = read_form(endpoint_schema, *_form({"scan": ("a scan.bin", EVERY_BYTE)}))
    assert row == {"scan": EVERY_BYTE}
    assert endpoint_schema.values(row) == {"SCAN": [EVERY_BYTE]}


def test_a_file_in_a_form_is_the_file_in_json(endpoint_schema):
    row = read_form(endpoint_schema, *_form({"scan": ("x", b"abc")}))
    assert endpoint_schema.values(row) == endpoint_schema.values({"scan": {"b64": "YWJj"}})


def test_other_fields_are_read_by_their_schema(endpoint_schema):
    files = {"scan": ("x", b"1"), "mask": ("y", b"2")}
    data = {"title": "42", "weights": "[1, 2.5]", "greedy": "true"}
    assert read_form(endpoint_schema, *_form(files, data)) == {
        "scan": b"1",
        "mask": b"2",
        "title": "42",
        "weights": [1, 2.5],
        "greedy": True,
    }


SCAN = {"scan": ("x", b"1")}
WRONG_FORMS = {
    "missing field": ({"mask": ("x", b"1")}, {}, '"scan" is a required property'),
    "empty file": ({"scan": ("x", b"")}, {}, "scan.b64"),
    "unknown field": ({**SCAN, "scam": ("x", b"1")}, {}, "unknown field 'scam': send scan, mask"),
    "text that is too long": (SCAN, {"title": "0123456789"}, "title: .*longer than 9"),
    "no JSON": (SCAN, {"greedy": "yes"}, "greedy: write it as JSON"),
    "JSON of another type": (SCAN, {"weights": '["a"]'}, "weights.0"),
    "text that is not UTF-8": ({**SCAN, "title": ("x", b"\xff")}, {}, "title is not UTF-8"),
}


@pytest.mark.parametrize("name", WRONG_FORMS)
def test_a_form_that_does_not_fit_names_the_field(endpoint_schema, name):
    files, data, message = WRONG_FORMS[name]
    with pytest.raises(InvalidRequest, match=message):
        read_form(endpoint_schema, *_form(files, data))


def _raw(*parts: bytes, end: bytes = b"--x--\r\n") -> tuple[bytes, bytes]:
    return b"multipart/form-data; boundary=x", b"".join(b"--x\r\n" + p for p in parts) + end


PART = b'Content-Disposition: form-data; name="scan"\r\n\r\nabc\r\n'
BROKEN_FORMS = {
    "no boundary in the header": ((b"multipart/form-data", b""), "has no boundary"),
    "another boundary": ((b"multipart/form-data; boundary=y", _raw(PART)[1]), "not a multipart"),
    "no form at all": ((b"multipart/form-data; boundary=x", b'{"scan": 1}'), "not a multipart"),
    "endless boundary": ((b"multipart/form-data; boundary=" + b"y" * 9999, b""), "form"),
    "empty body": ((b"multipart/form-data; boundary=x", b""), "truncated"),
    "truncated in a part": (_raw(PART[:-4], end=b""), "truncated"),
    "truncated between parts": (_raw(PART, end=b""), "truncated"),
    "same field twice": (_raw(PART, PART), "'scan' twice"),
    "no name": (_raw(b"Content-Disposition: form-data\r\n\r\nabc\r\n"), "has no name"),
    "no disposition": (_raw(b"Content-Type: text/plain\r\n\r\nabc\r\n"), "has no name"),
    "too many parts": (_raw(*[PART] * (MAX_PARTS + 1)), f"more than {MAX_PARTS} parts"),
    "too many headers": (_raw(b"A: b\r\n" * 100 + PART), "not a multipart"),
    "endless header": (_raw(b"A: " + b"b" * 100_000 + b"\r\n" + PART), "not a multipart"),
}


@pytest.mark.parametrize("name", BROKEN_FORMS)
def test_a_broken_form_is_refused(endpoint_schema, name):
    form, message = BROKEN_FORMS[name]
    with pytest.raises(InvalidRequest, match=message):
        read_form(endpoint_schema, *form)


def test_an_endpoint_without_files_takes_no_form():
    fields = {name: REQUEST["properties"][name] for name in ("title", "weights")}
    endpoint_schema = _compiled({"type": "object", "properties": fields})
    with pytest.raises(InvalidRequest, match="send JSON"):
        read_form(endpoint_schema, *_form(None, {"title": "a"}))


def _request_content(endpoint_schema: CompiledEndpoint) -> dict:
    tensor = {"SCORE": TensorMeta("SCORE", "FP32", (1,))}
    model = Model("scanner", ("1",), 8, {}, tensor, False, endpoint_schema, None)
    operation = describe("", "", Catalogue({"scanner": model}))["paths"]["/v1/scanner"]["post"]
    return operation["requestBody"]["content"]


def test_the_document_shows_the_form(endpoint_schema):
    content = _request_content(endpoint_schema)
    form = content["multipart/form-data"]["schema"]
    assert form["required"] == ["scan"]
    assert form["properties"]["scan"] == {
        "type": "string",
        "format": "binary",
        "description": "A scan.",
    }
    assert form["properties"]["title"]["type"] == "string"
    assert content["application/json"]["schema"]["oneOf"][0] == REQUEST


def test_an_endpoint_without_files_has_no_form_in_the_document():
    title = {"title": REQUEST["properties"]["title"]}
    content = _request_content(_compiled({"type": "object", "properties": title}))
    assert set(content) == {"application/json"}
