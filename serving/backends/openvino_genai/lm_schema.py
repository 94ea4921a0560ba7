"""JSON Schemas as the engine's compiler of grammars (xgrammar) must get them.

What openvino-genai 2026.4.1 makes of a schema was compared with what it means, by a model that
writes at random (tests/serving/backends/test_openvino_genai_schema.py). It compiles these, and
writes what does not fit:

- a ``pattern`` that may match a quote, a backslash or a control character, and every string with a
  length: they are written into the JSON as they are;
- a ``pattern`` with alternatives or anchors within it;
- the formats date, time, date-time, ipv4 and hostname;
- a ``minimum`` without a ``maximum``, or the reverse;
- the characters U+0080 to U+00FF before a hexadecimal digit, in names and values, as in "größe".

Each becomes something that it writes well, or is refused.
"""

import json
import math
import re
from typing import Any

Json = dict[str, Any]
_NO_ESCAPE = '"\\\\\\x00-\\x1f'  # of a character class: what JSON writes as an escape
# Said by what it is: a negated class lets broken UTF-8 through.
_CHARACTER = "[ !#-\\[\\]-~\u00a1-\ud7ff\ue000-\U0010ffff]"
_MAX_INTEGER = 10**15  # a bound for integers that have none
_MISREAD = re.compile("[\x80-\xff][0-9a-fA-F]")
_DAY = (
    "[12][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LABEL = "[a-z0-9]{1,20}(?:-[a-z0-9]{1,20})?"
# A part of what each allows: days that every year has, names in ASCII.
_FORMATS = {
    "date": _DAY,
    "time": _TIME,
    "date-time": f"{_DAY}T{_TIME}",
    "ipv4": f"{_BYTE}(?:\\.{_BYTE}){{3}}",
    "hostname": f"{_LABEL}(?:\\.{_LABEL}){{0,3}}",
    "email": f"[a-z0-9]{{1,20}}(?:[._-][a-z0-9]{{1,20}})?@{_LABEL}(?:\\.{_LABEL})?\\.[a-z]{{2,10}}",
}


class CannotWrite(Exception):
    """There is no such grammar; the text names the keyword."""


def writable(schema: Any) -> Any:
    """The schema for the compiler; it must have been checked (lm_sampling). Raises CannotWrite."""
    if not isinstance(schema, dict):
        return schema
    result: Json = {}
    for keyword, value in schema.items():
        if keyword in ("properties", "$defs", "definitions"):
            rename = _name if keyword == "properties" else str
            result[keyword] = {rename(name): writable(part) for name, part in value.items()}
        elif keyword in ("anyOf", "allOf", "prefixItems"):
            result[keyword] = [writable(part) for part in value]
        elif keyword in ("items", "additionalProperties"):
            result[keyword] = writable(value)
        elif keyword == "required":
            result[keyword] = [_name(name) for name in value]
        elif keyword == "$ref" and _name(value) != value:
            raise CannotWrite("'$ref' to a name with such characters is not supported")
        else:
            result[keyword] = value
    if "pattern" in schema:
        result["pattern"] = f"^(?:{pattern_in_json(schema['pattern'])})$"
    elif schema.get("format") in _FORMATS:
        del result["format"]
        result["pattern"] = f"^(?:{_FORMATS[schema['format']]})$"
    elif "minLength" in schema or "maxLength" in schema:
        least, most = result.pop("minLength", 0), result.pop("maxLength", "")
        result["pattern"] = f"^{_CHARACTER}{{{least},{most}}}$"
    return _values(_bounded(result))


def _name(name: str) -> str:
    """A property's name, which the compiler puts into its grammar without escapes."""
    text = json.dumps(name, ensure_ascii=bool(_MISREAD.search(name)))[1:-1]
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _bounded(schema: Json) -> Json:
    """With two inclusive bounds, if it has any."""
    given = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"} & set(schema)
    if not given:
        return schema
    lows = [-_MAX_INTEGER]
    highs = [_MAX_INTEGER]
    if "minimum" in schema:
        lows.append(math.ceil(schema.pop("minimum")))
    if "exclusiveMinimum" in schema:
        lows.append(math.floor(schema.pop("exclusiveMinimum")) + 1)
    if "maximum" in schema:
        highs.append(math.floor(schema.pop("maximum")))
    if "exclusiveMaximum" in schema:
        highs.append(math.ceil(schema.pop("exclusiveMaximum")) - 1)
    low, high = max(lows), min(highs)
    if low > high:
        raise CannotWrite(f"{min(given)!r} leaves no integer")
    return {**schema, "minimum": low, "maximum": high}


def _values(schema: Json) -> Json:
    """With those values of ``enum`` and ``const`` that the compiler misreads as patterns."""
    keyword = next((name for name in ("enum", "const") if name in schema), "")
    values = schema["enum"] if keyword == "enum" else [schema.get("const")]
    misread = [value for value in values if _MISREAD.search(json.dumps(value, ensure_ascii=False))]
    if not keyword or not misread:
        return schema
    if not all(isinstance(value, str) for value in misread):
        raise CannotWrite(f"{keyword!r} with such characters within an object is not supported")
    rest = {name: value for name, value in schema.items() if name not in (keyword, "type")}
    pattern = "|".join(pattern_in_json(_unescaped(re.escape(str(value)))) for value in misread)
    parts: list[Json] = [{"type": "string", "pattern": f"^(?:{pattern})$"}]
    others = [value for value in values if value not in misread]
    if others:
        parts.append({"enum": others})
    return {**rest, **(parts[0] if len(parts) == 1 else {"anyOf": parts})}


def _unescaped(text: str) -> str:
    """As ``re.escape`` has it, without the escapes that patterns do not know."""
    return re.sub(r"\\([ #&~'\"%,/:;<=>@_`!-])", r"\1", text)


_TOKEN = re.compile(r"\[\^?(?:\\.|[^\]\\])(?:\\.|[^\]\\])*\]|\\.|\{\d*,?\d*\}|\(\?:|.", re.DOTALL)
_CLASSES = {"D": "0-9", "W": "a-zA-Z0-9_", "S": " "}
_ALLOWED_CLASSES = {"d": "0-9", "w": "a-zA-Z0-9_", "s": " "}


def pattern_in_json(pattern: str) -> str:
    """A regular expression whose matches, between quotes, are the JSON of strings that match
    ``pattern``: of all its matches, or of those without characters that JSON writes as an escape.
    Raises CannotWrite."""
    parts = _TOKEN.findall(pattern)
    written: list[str] = []
    depth = 0
    for at, part in enumerate(parts):
        if part in ("(", "(?:"):
            depth += 1
        elif part == ")":
            depth -= 1
        if part in ("^", "$"):
            step = -1 if part == "^" else 1
            beside = parts[at + step] if 0 <= at + step < len(parts) else "|"
            if depth or beside != "|":
                raise CannotWrite(f"'pattern' with {part!r} within it is not supported")
            continue
        written.append(_character(part))
    return "".join(written)


def _character(part: str) -> str:
    if part == ".":
        return _CHARACTER
    if part == '"':
        return '(?:\\\\")'
    if part == "\\\\":
        return "(?:\\\\\\\\)"
    if part[0] == "[":
        return _class(part)
    if part[0] == "\\" and part[1] in _CLASSES:
        return f"[^{_CLASSES[part[1]]}{_NO_ESCAPE}]"
    if part[0] == "\\" and part[1] in _ALLOWED_CLASSES:
        return f"[{_ALLOWED_CLASSES[part[1]]}]"
    if (part[0] == "\\" and part[1] in "nrt") or part[-1] < " ":
        raise CannotWrite("'pattern' with a control character is not supported")
    return part


def _class(part: str) -> str:
    """A character class without what JSON writes as an escape."""
    is_negated = part.startswith("[^")
    members = re.findall(r"\\.|.", part[2 if is_negated else 1 : -1], re.DOTALL)
    if is_negated:
        if any(member[0] == "\\" and member[1] in _CLASSES for member in members):
            raise CannotWrite("'pattern' with a negated class within one is not supported")
        inner = "".join(
            _ALLOWED_CLASSES.get(member[1:], member) if member[0] == "\\" else member
            for member in members
            if member not in ('"', "\\\\")
        )
        return f"[^{inner}{_NO_ESCAPE}]"
    ranges: list[str] = []
    at = 0
    while at < len(members):
        member = members[at]
        if member[0] == "\\" and member[1] in _CLASSES:
            raise CannotWrite("'pattern' with a negated class within one is not supported")
        if member[0] == "\\" and member[1] in _ALLOWED_CLASSES:
            ranges.append(_ALLOWED_CLASSES[member[1]])
        elif members[at + 1 : at + 2] == ["-"] and at + 2 < len(members):
            ranges += _range(_plain(member), _plain(members[at + 2]))
            at += 2
        elif _plain(member) not in ('"', "\\") and _plain(member) >= " ":
            ranges.append(_in_class(_plain(member)))
        at += 1
    if not ranges:
        raise CannotWrite("'pattern' with a class of such characters is not supported")
    return f"[{''.join(ranges)}]"


def _plain(member: str) -> str:
    """The character that stands for itself."""
    return {"n": "\n", "r": "\r", "t": "\t"}.get(member[1:], member[-1])


def _in_class(character: str) -> str:
    return f"\\{character}" if character in "\\]^-[" else character


def _range(first: str, last: str) -> list[str]:
    """The range, without quotes, backslashes and control characters."""
    low, high = max(ord(first), 0x20), ord(last)
    bounds = [low]
    for hole in (0x22, 0x5C):
        if low <= hole <= high:
            bounds += [hole - 1, hole + 1]
    bounds.append(high)
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    return [f"{_in_class(chr(a))}-{_in_class(chr(b))}" for a, b in pairs if a <= b]
