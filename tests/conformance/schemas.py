"""Fifty JSON Schemas of the kinds that people send, and whether a served model keeps them.

    python -m tests.conformance.schemas --url http://127.0.0.1:8080 --model chat

asks each of them with five seeds at temperature 1 and validates every answer; the key is in
``TIDEGATE_API_KEY``. Exit code 1 if an answer that ended by itself is not valid. Needs httpx and
jsonschema-rs.
"""

import argparse
import collections
import json
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import jsonschema_rs

Json = dict[str, Any]
SEEDS = 5
AT_ONCE = 8
LARGE = sys.float_info.max
TEXT: Json = {"type": "string", "maxLength": 20}
DAY: Json = {"type": "string", "format": "date"}
SMALL: Json = {"type": "integer", "minimum": 0, "maximum": 100}


def _object(*optional: str, **properties: Json) -> Json:
    """All properties are required, except for those that are named first."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _array(items: Json, most: int, least: int = 0) -> Json:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _enum(*values: Any) -> Json:
    return {"enum": list(values)}


def _nullable(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _string(**more: Any) -> Json:
    return {"type": "string", **more}


_ADDRESS = _object(street=TEXT, city=TEXT, zip=_string(pattern="^[0-9]{5}$"))
_TREE: Json = {
    **_object(name=TEXT, children=_array({"$ref": "#/$defs/node"}, 1)),
    "$defs": {"node": _object(name=TEXT, children=_array({"$ref": "#/$defs/node"}, 1))},
}
_CAT = _object(kind={"const": "cat"}, indoor={"type": "boolean"})
_DOG = _object(kind={"const": "dog"}, breed=TEXT)
_LINE = _object(product=TEXT, quantity=SMALL)
SCHEMAS: Mapping[str, Json] = {
    # objects
    "person": _object(name=TEXT, age=SMALL),
    "optional property": _object("nickname", name=TEXT, nickname=TEXT),
    "nothing required": _object("a", "b", a=TEXT, b=SMALL),
    "no properties": {"type": "object", "properties": {}, "additionalProperties": False},
    "nested object": _object(person=_object(name=TEXT, address=_ADDRESS)),
    "four levels": _object(a=_object(b=_object(c=_object(d=SMALL)))),
    "many properties": _object(**{f"field_{number}": SMALL for number in range(12)}),
    "names that need escapes": _object(**{'a "b"': SMALL, "c/d": SMALL, "größe 😀": SMALL}),
    "described": {
        **_object(city={**TEXT, "title": "City", "description": "Of the order.", "default": "x"}),
        "title": "Order",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
    },
    # arrays
    "strings": _array(TEXT, 4),
    "at least two": _array(SMALL, 4, 2),
    "exactly three": _array(SMALL, 3, 3),
    "no items": _array(TEXT, 0),
    "objects in an array": _array(_LINE, 3, 1),
    "array of arrays": _array(_array(SMALL, 2, 2), 2, 1),
    "pair": {
        "type": "array",
        "prefixItems": [TEXT, SMALL],
        "items": False,
        "minItems": 2,
        "maxItems": 2,
    },
    "order": _object(customer=TEXT, lines=_array(_LINE, 3, 1), paid={"type": "boolean"}),
    # enums and constants
    "sentiment": _object(sentiment=_enum("positive", "negative", "neutral")),
    "enum of everything": _object(value=_enum("a", 1, 2.5, True, None)),
    "typed enum": _object(unit={"type": "string", "enum": ["celsius", "fahrenheit"]}),
    "constant": _object(version={"const": 2}, kind={"const": "report"}),
    "enum of unicode": _object(mood=_enum("größer", "日本", "😀")),
    "enum of prefixes": _object(value=_enum("a", "ab", "abc")),
    "labels": _array(_enum("bug", "feature", "question"), 3, 1),
    "root enum": _enum("yes", "no"),
    # numbers
    "rating": _object(stars={"type": "integer", "minimum": 1, "maximum": 5}),
    "negative": _object(celsius={"type": "integer", "minimum": -40, "maximum": -1}),
    "exclusive": _object(n={"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10}),
    "large": _object(id={"type": "integer", "minimum": 1000, "maximum": 999999}),
    "across zero": _object(x={"type": "integer", "minimum": -5, "maximum": 5}),
    "number": _object(price={"type": "number"}, in_stock={"type": "boolean"}),
    "root integer": SMALL,
    # strings
    "bounded string": _object(title=_string(minLength=3, maxLength=12)),
    "exact length": _object(code=_string(minLength=4, maxLength=4)),
    "postcode": _object(zip=_string(pattern="^[0-9]{5}(-[0-9]{4})?$")),
    "slug": _object(slug=_string(pattern="^[a-z0-9]+(-[a-z0-9]+){0,3}$")),
    "colour": _object(colour=_string(pattern="^#[0-9a-f]{6}$")),
    "date": _object(day=DAY),
    "date and time": _object(at=_string(format="date-time")),
    "uuid": _object(id=_string(format="uuid")),
    "address": _object(mail=_string(format="email"), host=_string(format="ipv4")),
    # choices
    "nullable": _object(name=TEXT, middle=_nullable(TEXT)),
    "type list": _object(value={"type": ["boolean", "null"]}),
    "any of two types": _object(value={"anyOf": [SMALL, TEXT]}),
    "union of objects": _object(pet={"anyOf": [_CAT, _DOG]}),
    "list of unions": _array({"anyOf": [_CAT, _DOG]}, 3, 1),
    # references
    "referenced": {**_object(home={"$ref": "#/$defs/address"}), "$defs": {"address": _ADDRESS}},
    "referenced twice": {
        **_object(home={"$ref": "#/definitions/a"}, work={"$ref": "#/definitions/a"}),
        "definitions": {"a": _object(city=TEXT)},
    },
    "tree": _TREE,
    "one of all": {"allOf": [_object(name=TEXT, day=DAY)]},
}


@dataclass(frozen=True)
class Completion:
    """What the model wrote, why it ended, and what is wrong with it ('' if nothing)."""

    name: str
    seed: int
    text: str
    finish_reason: str
    fault: str


def ask(
    client: httpx.Client, model: str, name: str, seed: int, max_tokens: int = 256
) -> Completion:
    """A model's answer, bound to the schema of this name."""
    form = {"name": "answer", "strict": True, "schema": SCHEMAS[name]}
    content = f"Write an example of JSON: {name}."
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "response_format": {"type": "json_schema", "json_schema": form},
        "temperature": 1,
        "seed": seed,
        "max_tokens": max_tokens,
    }
    reply = client.post("/v1/chat/completions", json=body)
    if reply.status_code != 200:
        return Completion(name, seed, "", "", f"{reply.status_code}: {reply.text}")
    choice = reply.json()["choices"][0]
    text, reason = choice["message"]["content"], choice["finish_reason"]
    if reason == "length":
        return Completion(name, seed, text, reason, "")
    return Completion(name, seed, text, reason, fault_of(SCHEMAS[name], text))


def fault_of(schema: Json, text: str) -> str:
    """What of the text does not fit the schema, its formats included; '' if it fits."""
    try:
        # JSON has numbers that no float holds, such as 1e999.
        document = json.loads(
            text, parse_float=lambda number: max(-LARGE, min(LARGE, float(number)))
        )
    except ValueError as error:
        return f"it is not JSON: {error}"
    validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    return "; ".join(error.message for error in validator.iter_errors(document))


def completions(client: httpx.Client, model: str, seeds: int) -> Iterator[Completion]:
    """Those of all schemas with this many seeds, in order."""
    pairs = [(name, seed) for seed in range(seeds) for name in SCHEMAS]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(lambda pair: ask(client, model, *pair), pairs)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.schemas")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", default="chat")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    key = os.environ.get("TIDEGATE_API_KEY", "")
    headers = {"Authorization": f"Bearer {key}"}
    counts: collections.Counter[str] = collections.Counter()
    with httpx.Client(base_url=arguments.url, headers=headers, timeout=300) as client:
        for completion in completions(client, arguments.model, arguments.seeds):
            outcome = "invalid" if completion.fault else completion.finish_reason
            counts[outcome if completion.finish_reason else "unanswered"] += 1
            if completion.fault:
                where = f"{completion.name}, seed {completion.seed}"
                sys.stdout.write(f"{where}: {completion.fault}: {completion.text[:200]!r}\n")
    sys.stdout.write(
        f"{len(SCHEMAS)} schemas, {arguments.seeds} seeds: {counts['stop']} answers are valid, "
        f"{counts['length']} ended with length, {counts['invalid']} are wrong, "
        f"{counts['unanswered']} requests failed\n"
    )
    return 0 if counts["invalid"] + counts["unanswered"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
