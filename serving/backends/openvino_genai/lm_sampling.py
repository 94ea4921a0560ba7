"""``sampling_parameters`` as vLLM names them. What this engine lacks is refused by name."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lm_schema import CannotWrite, writable

MARKER = "[tidegate:invalid_input]"
CONTEXT_MARKER = "[tidegate:invalid_input context_length]"
MAX_N = 16
MAX_STOPS = 64
MAX_STOP_LENGTH = 1024  # characters
MAX_STRUCTURE = 65536  # characters of a schema or grammar
DEFAULT_MAX_TOKENS = 16  # vLLM's
WHAT_FITS = -1  # ``truncate_prompt_tokens``: leave room for max_tokens, as far as half the context

# Each is a feature of vLLM that this engine has not, and the values that ask for nothing.
_LACKING: Mapping[str, tuple[Any, ...]] = {
    "logit_bias": ({},),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "prompt_logprobs": (),
    "best_of": (1,),
    "detokenize": (True,),
    "spaces_between_special_tokens": (True,),
    "logits_processors": ([],),
    "flat_logprobs": (False,),
    "extra_args": ({},),
    "lora_name": (),
}
# What the engine would ignore in a schema is refused here, what it cannot compile in lm_structures.
_STRUCTURES = ("json", "regex", "choice", "grammar", "json_object")
_TYPES = frozenset(("object", "array", "string", "integer", "number", "boolean", "null"))
_NOTES = ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly")
_ANNOTATIONS = frozenset(("$schema", "$id", "$comment", "discriminator", *_NOTES))
_DEFINITIONS = ("$defs", "definitions")
_SCHEMAS_BY_NAME = frozenset(("properties", *_DEFINITIONS))
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
# The engine's grammar keeps one of these and silently drops every keyword beside it.
_ALONE = ("$ref", "anyOf", "allOf", "enum", "const")
# It ignores these where the type is not said, and bounds of numbers that are no integers.
_NEED_TYPE = {
    **dict.fromkeys(_BOUNDS, "integer"),
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), "string"),
    **dict.fromkeys(("minItems", "maxItems", "items", "prefixItems"), "array"),
}
# Those that it writes in their form; it ignores others.
_FORMATS = frozenset(
    ("date", "time", "date-time", "duration", "uuid", "ipv4", "ipv6", "email", "uri", "hostname")
)
_MAX_DEPTH = 32
_ESCAPES = re.compile(r"\\[dDwWsSnrt.*+?()\[\]{}|^$/\\-]")
_MAX_REPEATS = 1000
_MAX_REGEX = 10_000  # characters, its repeats written out: compiling more takes minutes

Number = TypeVar("Number", int, float)


class Refused(Exception):
    """The client asked for something that cannot be done; the text is meant for it."""


class PromptTooLong(Refused):
    """The prompt does not fit into the context."""


@dataclass(frozen=True)
class Sampling:
    """How one prompt is continued. ``temperature`` 0 is greedy."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = DEFAULT_MAX_TOKENS  # None: up to the context's end
    min_tokens: int = 0
    logprobs: int | None = None  # the chosen token, and so many of the likeliest
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None  # keep so many tokens, the last ones
    structure: tuple[str, str] | None = None  # json_schema, regex or grammar, and its text


def parse(text: str) -> Sampling:
    """Raises Refused."""
    try:
        values = json.loads(text) if text else {}
    except ValueError:
        raise Refused("sampling_parameters is not JSON") from None
    if not isinstance(values, dict):
        raise Refused("sampling_parameters must be a JSON object")
    values = {name: value for name, value in values.items() if value is not None}
    for name, harmless in _LACKING.items():
        if name in values and values.pop(name) not in harmless:
            if name == "lora_name":
                raise Refused("lora_name: there is no such adapter")
            raise Refused(f"{name} is not supported by this model's engine")
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        if name not in _READERS:
            raise Refused(f"sampling parameter {name[:64]!r} is not known")
        attribute = "structure" if name == "structured_outputs" else name
        parsed[attribute] = _READERS[name](name, value)
    sampling = Sampling(**parsed)
    if sampling.temperature == 0 and sampling.n > 1:
        raise Refused("n must be 1 when temperature is 0, which gives the same text each time")
    if sampling.logprobs:
        is_plain = (sampling.presence_penalty, sampling.frequency_penalty) == (0, 0)
        if sampling.logprobs > 1 or sampling.temperature > 0 or not is_plain:
            raise Refused(
                f"logprobs {sampling.logprobs} is not supported by this model's engine, which "
                "gives the log-probability of the chosen token only: ask for logprobs 0"
            )
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        raise Refused("min_tokens must not exceed max_tokens")
    return sampling


def _number(
    kind: Callable[[Any], Number], low: float, high: float, above: bool = False
) -> Callable[[str, Any], Number]:
    def read(name: str, value: Any) -> Number:
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise ValueError
            number = kind(value)
            if isinstance(value, float) and number != value:
                raise ValueError
        except (ValueError, OverflowError):
            whole = "an integer" if kind is int else "a number"
            raise Refused(f"{name} must be {whole}") from None
        if not (low <= number <= high) or (above and number == low):
            bound = f"above {low}" if above else f"at least {low}"
            raise Refused(f"{name} must be {bound} and at most {high}")
        return number

    return read


def _flag(name: str, value: Any) -> bool:
    named = {"true": True, "false": False}
    if isinstance(value, str) and value.lower() in named:
        return named[value.lower()]
    if not isinstance(value, bool):
        raise Refused(f"{name} must be true or false")
    return value


def _stop(name: str, value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise Refused(f"{name} must be a text or a list of texts, none of them empty")
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_LENGTH for stop in stops):
        raise Refused(f"{name} takes at most {MAX_STOPS} texts of {MAX_STOP_LENGTH} characters")
    return tuple(stops)


def _token_ids(name: str, value: Any) -> frozenset[int]:
    if not isinstance(value, list) or len(value) > MAX_STOPS:
        raise Refused(f"{name} must be a list of at most {MAX_STOPS} token ids")
    return frozenset(_number(int, 0, 2**31 - 1)(name, identifier) for identifier in value)


def _top_k(name: str, value: Any) -> int:
    return max(0, _number(int, -1, 2**31 - 1)(name, value))  # -1 and 0: all, as in vLLM


def _kept_tokens(name: str, value: Any) -> int:
    count = _number(int, WHAT_FITS, math.inf)(name, value)
    if count == 0:
        raise Refused(f"{name} must not be 0, which leaves no prompt")
    return count


def _structure(name: str, value: Any) -> tuple[str, str]:
    """``value`` is JSON within the JSON, or the object itself."""
    try:
        asked = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise Refused(f"{name} is not JSON") from None
    if not isinstance(asked, dict):
        raise Refused(f"{name} must be an object")
    asked = {key: item for key, item in asked.items() if item is not None}
    for key in asked:
        if key not in _STRUCTURES:
            raise Refused(f"{name}: {key[:64]!r} is not supported by this model's engine")
    if len(asked) != 1:
        raise Refused(f"{name} must have exactly one of {', '.join(_STRUCTURES)}")
    ((kind, item),) = asked.items()
    result = _STRUCTURE_READERS[kind](item)
    if result is None:
        raise Refused(f"{name}: {kind} has no such value")
    if len(result[1]) > MAX_STRUCTURE:
        raise Refused(f"{name}: {kind} is longer than {MAX_STRUCTURE} characters")
    return result


def _json_schema(item: Any) -> tuple[str, str] | None:
    try:
        schema = json.loads(item) if isinstance(item, str) else item
    except ValueError:
        return None
    if not isinstance(schema, dict):
        return None
    _check_schema(schema, schema, 0)
    try:
        return "json_schema", json.dumps(writable(schema))
    except CannotWrite as error:
        raise Refused(f"json schema: {error}") from None


def _check_schema(schema: Any, root: dict[str, Any], depth: int) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        raise Refused(f"json schema: a part is not a schema, or deeper than {_MAX_DEPTH}")
    for keyword, value in schema.items():
        if keyword in _ANNOTATIONS:
            continue
        if keyword not in _KEYWORDS:
            raise Refused(f"json schema: the keyword {keyword[:64]!r} is not supported")
        if not _KEYWORDS[keyword](value, root):
            raise Refused(f"json schema: the keyword {keyword!r} has a value that is not supported")
        if keyword in _SCHEMAS_BY_NAME:
            parts = list(value.values())
        elif keyword in ("anyOf", "allOf", "prefixItems"):
            parts = value
        else:
            parts = [value] if keyword in ("items", "additionalProperties") else []
        for part in parts:
            _check_schema(part, root, depth + 1)
    _check_together(schema)


def _check_together(schema: dict[str, Any]) -> None:
    """Keywords that the engine keeps only by themselves, or only with their type."""
    meaning = [name for name in schema if name not in _ANNOTATIONS and name not in _DEFINITIONS]
    alone = next((name for name in _ALONE if name in schema), "")
    beside = [name for name in meaning if name != alone]
    if alone in ("enum", "const") and "type" in beside:
        values = schema["enum"] if alone == "enum" else [schema["const"]]
        if all(_has_type(value, schema["type"]) for value in values):
            beside.remove("type")
    if alone and beside:
        raise Refused(f"json schema: {beside[0]!r} beside {alone!r} is not supported")
    for name in meaning:
        needed = _NEED_TYPE.get(name)
        types = schema.get("type", ())
        if needed and needed not in ([types] if isinstance(types, str) else types):
            raise Refused(f"json schema: {name!r} needs the type {needed!r} beside it")
        if needed == "integer" and "number" in types:
            raise Refused(f"json schema: {name!r} of the type 'number' is not supported")
    if "pattern" in schema and {"minLength", "maxLength", "format"} & set(schema):
        raise Refused("json schema: lengths and 'format' beside 'pattern' are not supported")
    if "format" in schema and {"minLength", "maxLength"} & set(schema):
        raise Refused("json schema: lengths beside 'format' are not supported")
    missing = set(schema.get("required", ())) - set(schema.get("properties", ()))
    if missing:
        raise Refused(f"json schema: required {min(missing)[:64]!r} is not one of its properties")
    for low, high in (("minItems", "maxItems"), ("minLength", "maxLength")):
        if schema.get(low, 0) > schema.get(high, _MAX_REPEATS):
            raise Refused(f"json schema: {low} exceeds {high}")
    low_bounds = [schema[name] for name in ("minimum", "exclusiveMinimum") if name in schema]
    high_bounds = [schema[name] for name in ("maximum", "exclusiveMaximum") if name in schema]
    if low_bounds and high_bounds and max(low_bounds) >= min(high_bounds):
        raise Refused("json schema: its bounds leave no number")


def _has_type(value: Any, types: str | list[str]) -> bool:
    """Whether a value of an enumeration has one of these types."""
    names = [types] if isinstance(types, str) else types
    if isinstance(value, bool):
        return "boolean" in names
    if isinstance(value, int):
        return "integer" in names or "number" in names
    kinds = {str: "string", float: "number", list: "array", dict: "object", type(None): "null"}
    return kinds[type(value)] in names


def _is_reference(value: Any, root: dict[str, Any]) -> bool:
    """Whether it leads, in the end, to a schema that says something."""
    seen = set()
    while True:
        if not isinstance(value, str) or not value.startswith("#") or value in seen:
            return False
        seen.add(value)
        target: Any = root
        for part in value[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or key not in target:
                return False
            target = target[key]
        if not isinstance(target, dict) or "$ref" not in target:
            return isinstance(target, dict | bool)
        value = target["$ref"]


def _is_type(value: Any, _: dict[str, Any]) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in _TYPES for name in names)


def _is_number(value: Any, _: dict[str, Any]) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


_KEYWORDS: Mapping[str, Callable[[Any, dict[str, Any]], bool]] = {
    "type": _is_type,
    "$ref": _is_reference,
    "enum": lambda value, _: isinstance(value, list) and bool(value),
    "const": lambda value, _: True,
    "required": lambda value, _: (
        isinstance(value, list) and all(isinstance(name, str) for name in value)
    ),
    "pattern": lambda value, _: isinstance(value, str) and _is_regex(value),
    "items": lambda value, _: isinstance(value, dict | bool),
    "additionalProperties": lambda value, _: isinstance(value, dict | bool),
    "anyOf": lambda value, _: isinstance(value, list) and bool(value),
    "allOf": lambda value, _: isinstance(value, list) and len(value) == 1,
    "format": lambda value, _: value in _FORMATS,
    "prefixItems": lambda value, _: isinstance(value, list) and bool(value),
    **dict.fromkeys(_SCHEMAS_BY_NAME, lambda value, _: isinstance(value, dict)),
    **dict.fromkeys(_COUNTS, lambda value, _: type(value) is int and 0 <= value <= _MAX_REPEATS),
    **dict.fromkeys(_BOUNDS, _is_number),
}


def _is_regex(text: str) -> bool:
    """Whether it is a regular expression without look-around, references and boundaries."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    plain = _ESCAPES.sub("x", text)
    return (
        "\\" not in plain
        and not re.search(r"\(\?(?!:)|[*+?}][?+]", plain)
        and _written_out(plain) <= _MAX_REGEX
    )


def _written_out(text: str) -> int:
    """The characters of a regular expression whose counted repeats are written out."""
    sizes = [0]  # of the groups that are open
    last = 0  # of what a repeat would repeat
    for part in re.findall(r"\[\^?\]?[^\]]*\]|\{\d*,?\d*\}|.", text, re.DOTALL):
        if part == "(":
            sizes.append(0)
            continue
        if part == ")" and len(sizes) > 1:
            last = sizes.pop()
        elif part.startswith("{"):
            counts = [int(count) for count in re.findall(r"\d+", part)]
            if max(counts, default=0) > _MAX_REPEATS:
                return _MAX_REGEX + 1
            last *= max([*counts, 1]) - 1
        else:
            last = 1
        sizes[-1] += last
    return sum(sizes)


def _regex(item: Any) -> tuple[str, str] | None:
    return ("regex", item) if isinstance(item, str) and item and _is_regex(item) else None


def _choice(item: Any) -> tuple[str, str] | None:
    if not isinstance(item, list) or not item or not all(isinstance(one, str) for one in item):
        return None
    return "grammar", "root ::= " + " | ".join(json.dumps(one) for one in item)


_STRUCTURE_READERS: Mapping[str, Callable[[Any], tuple[str, str] | None]] = {
    "json": _json_schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": lambda item: ("grammar", item) if isinstance(item, str) and item else None,
    "json_object": lambda item: ("json_schema", '{"type": "object"}') if item is True else None,
}
_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "n": _number(int, 1, MAX_N),
    "temperature": _number(float, 0, 100),
    "top_p": _number(float, 0, 1, above=True),
    "top_k": _top_k,
    "min_p": _number(float, 0, 1),
    "presence_penalty": _number(float, -2, 2),
    "frequency_penalty": _number(float, -2, 2),
    "repetition_penalty": _number(float, 0, 100, above=True),
    "seed": _number(int, -(2**63), 2**63 - 1),
    "stop": _stop,
    "stop_token_ids": _token_ids,
    "include_stop_str_in_output": _flag,
    "ignore_eos": _flag,
    "max_tokens": _number(int, 1, math.inf),
    "min_tokens": _number(int, 0, math.inf),
    "logprobs": _number(int, 0, 20),
    "skip_special_tokens": _flag,
    "truncate_prompt_tokens": _kept_tokens,
    "structured_outputs": _structure,
}
