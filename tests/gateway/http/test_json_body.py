"""Which bodies are valid JSON, and which are refused as ambiguous."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.http.json_body import SMALL_BYTES, parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('":\\ a,{}', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('":\\ ab', max_size=4), inner)
    ),
    max_leaves=8,
)


@given(VALUES, st.sampled_from([None, 1]), st.sampled_from([(",", ":"), (" , ", " : ")]))
def test_any_json_is_accepted(value, indent, separators):
    text = json.dumps(value, indent=indent, separators=separators)
    assert parse_json(text.encode()) == value


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":2}',
        b'{"a":1,"a" :2}',
        b'{"a":1,"\\u0061":2}',
        b'{"a":1,"a":"\\u003a"}',
        b'[{"b":{"a":1,"c":"\\":","a":3}}]',
        b'{"a":"x\\":","a"\n:1}',
        b'{"inputs":[],"inputs":[{"name":"x"}]}',
    ],
)
def test_a_duplicate_key_is_refused(body):
    with pytest.raises(InvalidRequest, match="is in one object twice"):
        parse_json(body)


@pytest.mark.parametrize("padding", [0, SMALL_BYTES])
def test_a_body_that_is_not_utf_8_says_so(padding):
    body = b'{"text":"' + b" " * padding + b"caf\xe9" + b'"}'
    with pytest.raises(InvalidRequest, match="not UTF-8: encode it as UTF-8"):
        parse_json(body)


def test_a_string_that_looks_like_a_key_is_a_string():
    assert parse_json(b'{"a":"\\":"}') == {"a": '":'}
