"""Which JSON Schemas an output can be bound to."""

import pytest

from gateway.api.openai.structured_output import check_schema, response_grammar
from gateway.errors import InvalidRequest
from gateway.models.text_binding import Binding

ANY = Binding()


def _nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"uniqueItems": True}, "'uniqueItems'"),
        ({"properties": {"not": {"not": {}}}}, "'not'"),
        ({"anyOf": [{"if": {}}]}, "'if'"),
        ({"$ref": "https://example.com/schema"}, "outside of itself"),
        ({"$ref": "#/$defs/none"}, "to nothing"),
        ({"$ref": "#name"}, "to an anchor"),
        ({"anyOf": [{"type": "string"}], "$ref": "#/anyOf/0"}, "into a list"),
        ({"type": "strnig"}, "not a JSON Schema"),
        ({"properties": {"a": 5}}, "not an object"),
        ({"description": "x" * 65_536}, "over 65536 bytes"),
        (_nested(40), "deeper than 32"),
        (["object"], "an object"),
    ],
)
def test_a_schema_that_is_refused(schema, fault):
    with pytest.raises(InvalidRequest, match=fault):
        check_schema(schema, "schema", ANY)


def test_schemas_that_are_taken():
    node = {"type": "object", "properties": {"next": {"$ref": "#"}, "not": {"type": "string"}}}
    for schema in (node, {"enum": [{"not": 1}]}, _nested(31), {"additionalProperties": False}, {}):
        check_schema(schema, "schema", ANY)
    check_schema({"uniqueItems": True}, "schema", ANY, is_grammar=False)


def test_response_formats():
    assert response_grammar({"type": "text"}, ANY) is None
    assert response_grammar({"type": "json_object"}, ANY) == {"json_object": True}
    schema_format = {"name": "n", "strict": True, "schema": {"type": "object"}}
    whole = {"type": "json_schema", "json_schema": schema_format}
    assert response_grammar(whole, ANY) == {"json": {"type": "object"}}
    for wrong in ({**schema_format, "x": 1}, {**schema_format, "strict": 1}, {"name": "n"}):
        with pytest.raises(InvalidRequest):
            response_grammar({"type": "json_schema", "json_schema": wrong}, ANY)


def test_a_model_says_which_keywords_its_engine_keeps():
    binding = Binding(schema_keywords=frozenset(("type", "anyOf")))
    check_schema({"anyOf": [{"type": "string"}]}, "schema", binding)
    with pytest.raises(InvalidRequest, match="'oneOf', which is not supported"):
        check_schema({"oneOf": [{"type": "string"}]}, "schema", binding)
