"""JSON bodies of megabytes, parsed in pieces: no single call holds the interpreter's lock for long.

A document is cut at commas, about every ``PIECE_BYTES``. Each piece is completed with the brackets
that are open at its ends, parsed separately, and joined to what was parsed before it. The values
in it are counted before it is parsed, so a body that would explode into objects is refused while
only its beginning has been parsed.

Long arrays of numbers (``cut_arrays``) are not turned into objects at all: a Python float takes
32 bytes, and a tensor needs four. They stay text until the tensor firewall packs them.
"""

import json
import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson

from gateway.errors import InvalidRequest

PIECE_BYTES = 64 * 1024
MAX_DEPTH = 128  # a tensor has at most 16
_QUOTE, _COMMA, _COLON = b'",:'
_OPEN, _CLOSE, _BIT = ord("{"), ord("}"), 0x20  # with this bit set, [ is { and ] is }
_CLOSER = {ord("["): b"]", ord("{"): b"}"}
_SPACE = b" \t\r\n"
_JOINT = "\N{SYMBOL FOR UNIT SEPARATOR}tidegate"  # the key under which a cut object continues


class Bounds(NamedTuple):
    """How much a document may hold: values (lists and objects included), lists and objects, and
    keys of all objects together."""

    values: int = 2**20
    containers: int = 2**17
    keys: int = 2**18


BOUNDS = Bounds()


def parse_large(data: bytes, bounds: Bounds = BOUNDS) -> object:
    """As ``parse_json``. Raises InvalidRequest also for more values than the bounds allow."""
    document: object = None
    counts = Bounds(0, 0, 0)
    for piece in _pieces(data):
        counts = Bounds(*map(sum, zip(counts, piece.counts, strict=True)))
        if any(count > bound for count, bound in zip(counts, bounds, strict=True)):
            raise too_many(bounds)
        part = _parse_piece(piece)
        document = _join(document, part, piece.before) if piece.before else part
    return document


def too_many(bounds: Bounds) -> InvalidRequest:
    return InvalidRequest(
        f"the body has more than {bounds.values} values, {bounds.containers} lists and objects, or "
        f"{bounds.keys} keys: send less at once, and large tensors as binary data under /v2"
    )


class _Piece(NamedTuple):
    """Text between two cuts; ``before`` and ``after`` are the brackets that are open there."""

    text: bytes
    before: bytes
    after: bytes
    counts: Bounds


class _Window(NamedTuple):
    """A stretch of the document: its bytes, and which of them are outside of strings."""

    codes: np.ndarray  # uint8
    outside: np.ndarray  # bool
    in_string: bool  # at its end


def _windows(data: bytes, at: int, in_string: bool) -> tuple[int, _Window]:
    """The next stretch and where it ends. It starts at ``at``, which must not be the position of
    an escaped character."""
    end = min(at + PIECE_BYTES, len(data))
    text = data[at:end]
    if (len(text) - len(text.rstrip(b"\\"))) % 2 and end < len(data):
        end += 1  # an escape is not cut in two
        text = data[at:end]
    if b"\\" in text:
        text = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    codes = np.frombuffer(text, np.uint8)
    quotes = codes == _QUOTE
    inside = (np.cumsum(quotes, dtype=np.int32) + in_string) & 1
    return end, _Window(codes, (inside == 0) & ~quotes, bool(inside[-1]))


def _pieces(data: bytes) -> Iterator[_Piece]:
    """The document in pieces, with their counts. Raises InvalidRequest if it cannot be JSON."""
    begin = at = 0
    in_string = False
    before = stack = b""
    values = containers = keys = 0
    while at < len(data):
        end, window = _windows(data, at, in_string)
        codes, outside = window.codes, window.outside
        commas = np.flatnonzero((codes == _COMMA) & outside)
        is_last = end == len(data)
        cut = int(commas[-1]) if len(commas) and not is_last else -1
        if cut >= 0:
            codes, outside, end = codes[:cut], outside[:cut], at + cut
        stack, opened = _after(codes, outside, stack)
        containers += opened
        values += len(commas) + opened + (not before)
        keys += int(np.count_nonzero((codes == _COLON) & outside))
        if is_last and stack:
            raise _broken("it is incomplete", end)
        if cut >= 0 or is_last:
            text = data[begin:end]
            if (before or cut >= 0) and _is_bare(text, before, is_last):
                raise _broken("a comma with nothing beside it", begin)
            if not stack and cut >= 0:
                raise _broken("something comes after its end", end)
            yield _Piece(text, before, stack, Bounds(values, containers, keys))
            values = containers = keys = 0
            begin, before, in_string = end + 1, stack, False
            at = begin if cut >= 0 else end
        else:
            at, in_string = end, window.in_string
    if begin == len(data) and before:
        raise _broken("it ends with a comma", begin)


def _after(codes: np.ndarray, outside: np.ndarray, stack: bytes) -> tuple[bytes, int]:
    """The brackets that are open after this text, and how many were opened in it."""
    braces = codes | _BIT
    opening = (braces == _OPEN) & outside
    positions = np.flatnonzero(opening | ((braces == _CLOSE) & outside))
    if not len(positions):
        return stack, 0
    opens = opening[positions]
    depths = np.cumsum(np.where(opens, 1, -1), dtype=np.int32)
    lowest = min(0, int(depths.min()))
    if len(stack) + lowest < 0:
        raise _broken("it closes more brackets than it opened", 0)
    if len(stack) + int(depths.max()) > MAX_DEPTH:
        raise too_deep()
    later = np.minimum.accumulate(depths[::-1])[::-1]
    left_open = opens & (depths <= later)
    added = codes[positions[left_open]].tobytes()
    return stack[: len(stack) + lowest] + added, int(np.count_nonzero(opens))


def _is_bare(text: bytes, before: bytes, is_last: bool) -> bool:
    """Whether a comma next to this piece separates nothing: the brackets that complete the piece
    would hide that."""
    return (bool(before) and text.lstrip(_SPACE)[:1] in (b"]", b"}", b"")) or (
        not is_last and text.rstrip(_SPACE)[-1:] in (b"[", b"{", b"")
    )


def _parse_piece(piece: _Piece) -> object:
    joint = orjson.dumps(_JOINT) + b":"
    openers = [
        bytes([bracket]) + (joint if bracket == _OPEN else b"") for bracket in piece.before[:-1]
    ]
    head = b"".join(openers) + piece.before[-1:]
    tail = b"".join(_CLOSER[bracket] for bracket in reversed(piece.after))
    text = b"".join((head, piece.text, tail)) if head or tail else piece.text
    try:
        part = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise not_json(error, piece.text) from None
    if piece.counts.keys + piece.before[:-1].count(_OPEN) != count_keys(part):
        refuse_repeated(text)
    return part


def _join(document: Any, part: Any, stack: bytes) -> object:
    """``document``, continued by ``part`` where the brackets of ``stack`` are open."""
    left, right = document, part
    for bracket in stack[:-1]:
        if bracket == _OPEN:
            inner_left, inner_right = left[next(reversed(left))], right.pop(_JOINT)
            _extend(left, right)
        else:
            inner_left, inner_right = left[-1], right[0]
            left.extend(right[1:])
        left, right = inner_left, inner_right
    _extend(left, right)
    return document


def _extend(left: Any, right: Any) -> None:
    if isinstance(left, list):
        left.extend(right)
    elif left.keys().isdisjoint(right):
        left.update(right)
    else:
        raise repeated(next(key for key in right if key in left))


_CONTAINERS = {dict, list}


def count_keys(document: Any) -> int:
    """The number of keys of all objects in the document. Raises InvalidRequest if it is nested too
    deeply."""
    count, depth, level = 0, 0, [document] if type(document) in _CONTAINERS else []
    while level:
        if depth > MAX_DEPTH:
            raise too_deep()
        depth += 1
        deeper: list[Any] = []
        for value in level:
            children = value
            if type(value) is dict:
                count += len(value)
                children = value.values()
            if not _CONTAINERS.isdisjoint(map(type, children)):
                deeper += [child for child in children if type(child) in _CONTAINERS]
        level = deeper
    return count


def refuse_repeated(text: bytes) -> None:
    """Raises InvalidRequest if a key is in one object twice. orjson keeps the last of the two,
    other parsers the first: nobody should have to guess."""
    json.loads(text, object_pairs_hook=_refuse_duplicates)


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise repeated(key)
        seen.add(key)


def repeated(key: str) -> InvalidRequest:
    return InvalidRequest(f"the key {key[:64]!r} is in one object twice: send it once")


def too_deep() -> InvalidRequest:
    return InvalidRequest(
        f"the body is not JSON: it is nested too deeply (over {MAX_DEPTH} levels)"
    )


def not_json(error: orjson.JSONDecodeError, text: bytes) -> InvalidRequest:
    """orjson's error as ours; ``text`` is what it parsed."""
    reason = str(error)
    if "depth limit" in reason:
        return too_deep()
    if "not valid UTF-8" in reason:  # it says no place
        return InvalidRequest("the body is not JSON: it is not UTF-8: encode it as UTF-8")
    if b"NaN" in text or b"Infinity" in text:
        reason += "; JSON has no NaN or Infinity: send such values as binary tensors under /v2"
    return InvalidRequest(f"the body is not JSON: {reason}")


def _broken(reason: str, position: int) -> InvalidRequest:
    return InvalidRequest(f"the body is not JSON: {reason}, near byte {position}")


class Arrays:
    """Long arrays of numbers that were cut out of a document: views of the original text."""

    def __init__(self) -> None:
        self._mark = secrets.token_hex(16)  # nobody can guess it and write it into a document
        self._texts: list[memoryview] = []

    def add(self, text: memoryview) -> bytes:
        """Store the array and return its placeholder in the document: a list that cannot be
        mistaken for any other."""
        self._texts.append(text)
        return orjson.dumps([[self._mark, len(self._texts) - 1]])

    def of(self, value: object) -> memoryview | None:
        """The array for which ``value`` is the placeholder, or None."""
        match value:
            case [[self._mark, int(index)]]:
                return self._texts[index]
        return None


ARRAY_BYTES = 16 * 1024  # shorter ones are parsed with the rest
_INDENT = 1024  # the most white space around an array


def cut_arrays(data: bytes) -> tuple[bytes, Arrays]:
    """The document with placeholders for its long arrays of anything but strings and objects, and
    these arrays. Whether their content is JSON is not checked yet."""
    arrays, view = Arrays(), memoryview(data)
    parts: list[bytes] = []
    copied = 0
    for begin, end in _gaps(data):
        # Next is either a comma and the quote of a key, or the brace that closes the object.
        last = data[end - _INDENT : end].rstrip(_SPACE)
        array_end = end - _INDENT + len(last)
        if last.endswith(b","):
            last = last[:-1].rstrip(_SPACE)
            array_end = end - _INDENT + len(last)
        first = data[begin : begin + _INDENT].lstrip(_SPACE)
        if first.startswith(b"[") and last.endswith(b"]"):
            array_begin = begin + _INDENT - len(first)
            parts += (data[copied:array_begin], arrays.add(view[array_begin:array_end]))
            copied = array_end
    if not parts:
        return data, arrays
    return b"".join((*parts, data[copied:])), arrays


def _gaps(data: bytes) -> Iterator[tuple[int, int]]:
    """The stretches after a colon of more than ``ARRAY_BYTES`` without quote, brace or colon."""
    at, in_string = 0, False
    last, after_colon = 0, False  # the previous special character
    while at < len(data):
        end, window = _windows(data, at, in_string)
        codes = window.codes
        quotes = codes == _QUOTE
        brackets = codes | _BIT
        braces = ((brackets == _OPEN) | (brackets == _CLOSE)) & (codes >= _OPEN)
        positions = np.flatnonzero(quotes | ((braces | (codes == _COLON)) & window.outside))
        if len(positions):
            starts = np.concatenate(([last - at], positions[:-1]))
            for index in np.flatnonzero(positions - starts > ARRAY_BYTES):
                is_colon = codes[starts[index]] == _COLON if index else after_colon
                if is_colon:
                    yield at + int(starts[index]) + 1, at + int(positions[index])
            last = at + int(positions[-1])
            after_colon = bool(codes[positions[-1]] == _COLON)
        at, in_string = end, window.in_string
