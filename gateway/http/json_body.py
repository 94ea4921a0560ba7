"""Strict JSON: no NaN, no unbounded nesting, no duplicate key in an object."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from gateway.http.large_json import (
    BOUNDS,
    MAX_DEPTH,
    Bounds,
    count_keys,
    not_json,
    parse_large,
    refuse_repeated,
)

# Longer bodies are parsed in pieces, and not on the event loop (``gateway.http.off_loop``).
SMALL_BYTES = 64 * 1024
# Up to this size it costs less to write the document again than to walk through it in Python.
REWRITTEN_BYTES = 4 * 1024
_KEY_END = re.compile(rb'"[ \t\r\n]*:')


def parse_json(data: bytes, bounds: Bounds = BOUNDS) -> Any:
    """Parse a JSON document. Raises InvalidRequest, which says where it is invalid."""
    if len(data) > SMALL_BYTES:
        return parse_large(data, bounds)
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise not_json(error, data) from None
    if len(data) <= REWRITTEN_BYTES and _is_whole(data, document):
        return document
    # Every key is followed by a colon, and strings may contain more: if there are as many colons as
    # parsed keys, no key was dropped as a duplicate.
    keys = count_keys(document)
    if data.count(b":") != keys and len(_KEY_END.findall(data)) != keys:
        refuse_repeated(data)
    return document


def _is_whole(data: bytes, document: Any) -> bool:
    """Whether it is certain that the document is not too deep, and that it has as many colons as
    the text that it was parsed from, so that no key was dropped as a duplicate. A colon in a string
    stays one when it is written again, unless the text has an escape for it."""
    if b"\\" in data or data.count(b"{") + data.count(b"[") > MAX_DEPTH:
        return False
    return data.count(b":") == orjson.dumps(document).count(b":")


LARGE_BYTES = 128 * 1024  # larger tensors are written as JSON off the event loop
SLICE = 16 * 1024  # elements
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


def to_json(value: object) -> bytes:
    """The value as JSON. Takes numpy arrays too; a float32 prints in its own shortest form."""
    return orjson.dumps(value, option=_OPTIONS)


def array_slices(values: Sequence[Any]) -> Iterator[bytes]:
    """A long array (a numpy vector or a list) as JSON, in slices that take a short call each."""
    yield b"["
    for at in range(0, len(values), SLICE):
        if at:
            yield b","
        yield orjson.dumps(values[at : at + SLICE], option=_OPTIONS)[1:-1]
    yield b"]"
