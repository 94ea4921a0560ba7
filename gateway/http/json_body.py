"""JSON as JSON is: no NaN, no bottomless nesting, no key twice in one object."""

import json
import re
from typing import Any

import orjson

from gateway.errors import Malformed

_KEY_END = re.compile(rb'"[ \t\r\n]*:')
_CONTAINERS = {dict, list}
MAX_DEPTH = 128  # a tensor has at most 16


def parse_json(data: bytes) -> Any:
    """The document; Malformed says where it breaks."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        text = str(error)
        if "depth limit" in text:
            text = "it is nested too deeply"
        elif b"NaN" in data or b"Infinity" in data:
            text += "; JSON has no NaN or Infinity: send such values as binary tensors under /v2"
        raise Malformed(f"the body is not JSON: {text}") from None
    # Every key ends so, and a string may look like it: as many as were kept means that none was
    # lost. orjson keeps the last of two, others the first: nobody should have to guess.
    if len(_KEY_END.findall(data)) != _keys(document):
        json.loads(data, object_pairs_hook=_once)
    return document


def _keys(value: Any, depth: int = 0) -> int:
    """How many keys all objects in the document have together."""
    if type(value) not in _CONTAINERS:
        return 0
    if depth > MAX_DEPTH:
        raise Malformed(f"the body is not JSON: it is nested too deeply (over {MAX_DEPTH} levels)")
    count = len(value) if type(value) is dict else 0
    inside = value.values() if type(value) is dict else value
    if _CONTAINERS.isdisjoint(map(type, inside)):
        return count
    return count + sum(_keys(each, depth + 1) for each in inside)


def _once(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise Malformed(f"the key {key[:64]!r} stands twice in one object: send it once")
        seen.add(key)
