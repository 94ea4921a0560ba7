"""JSON bodies of megabytes, read in pieces: no single call keeps the interpreter's lock for long.

A document is cut at commas, about every ``PIECE_BYTES``. Each piece is made whole with the brackets
that are open at its ends, parsed by itself, and joined to what was read before it. What it would
become is counted before it is parsed, so a body that would explode into objects is refused while
only its beginning has been read.

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
_JOINT = "\N{SYMBOL FOR UNIT SEPARATOR}tidegate"  # the key under which a cut object goes on


class Bounds(NamedTuple):
    """How much a document may hold: values (lists and objects among them), lists and objects, and
    keys of all objects together."""

    values: int = 2**20
    containers: int = 2**17
    keys: int = 2**18


BOUNDS = Bounds()


def parse_large(data: bytes, bounds: Bounds = BOUNDS) -> Any:
    """As ``parse_json``; InvalidRequest also for more values than the bounds allow."""
    whole: Any = None
    held = Bounds(0, 0, 0)
    for piece in _pieces(data):
        held = Bounds(*map(sum, zip(held, piece.holds, strict=True)))
        if any(count > most for count, most in zip(held, bounds, strict=True)):
            raise too_many(bounds)
        part = _parsed(piece)
        whole = _joined(whole, part, piece.before) if piece.before else part
    return whole


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
    holds: Bounds


class _Window(NamedTuple):
    """What a stretch of the document holds outside of its strings."""

    codes: np.ndarray
    outside: np.ndarray
    in_string: bool  # at its end


def _windows(data: bytes, at: int, in_string: bool) -> tuple[int, _Window]:
    """The next stretch from ``at``, which is no escaped character, and where it ends."""
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
    """The document in pieces, each counted; InvalidRequest where it cannot be a document."""
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
            raise _broken("it breaks off", end)
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
    kinds = codes | _BIT
    opening = (kinds == _OPEN) & outside
    events = np.flatnonzero(opening | ((kinds == _CLOSE) & outside))
    if not len(events):
        return stack, 0
    rising = opening[events]
    depths = np.cumsum(np.where(rising, 1, -1), dtype=np.int32)
    lowest = min(0, int(depths.min()))
    if len(stack) + lowest < 0:
        raise _broken("it closes more than it opened", 0)
    if len(stack) + int(depths.max()) > MAX_DEPTH:
        raise too_deep()
    later = np.minimum.accumulate(depths[::-1])[::-1]
    left_open = rising & (depths <= later)
    added = codes[events[left_open]].tobytes()
    return stack[: len(stack) + lowest] + added, int(np.count_nonzero(rising))


def _is_bare(text: bytes, before: bytes, is_last: bool) -> bool:
    """Whether a comma beside this piece separates nothing: its brackets would make up for that."""
    return (bool(before) and text.lstrip(_SPACE)[:1] in (b"]", b"}", b"")) or (
        not is_last and text.rstrip(_SPACE)[-1:] in (b"[", b"{", b"")
    )


def _parsed(piece: _Piece) -> Any:
    joint = orjson.dumps(_JOINT) + b":"
    head = (
        b"".join(bytes([kind]) + (joint if kind == _OPEN else b"") for kind in piece.before[:-1])
        + piece.before[-1:]
    )
    tail = b"".join(_CLOSER[kind] for kind in reversed(piece.after))
    text = b"".join((head, piece.text, tail)) if head or tail else piece.text
    try:
        part = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise not_json(error, piece.text) from None
    if piece.holds.keys + piece.before[:-1].count(_OPEN) != count_keys(part):
        refuse_repeated(text)
    return part


def _joined(whole: Any, part: Any, stack: bytes) -> Any:
    """``whole``, going on with ``part`` where the brackets of ``stack`` are open."""
    left, right = whole, part
    for kind in stack[:-1]:
        if kind == _OPEN:
            inner_left, inner_right = left[next(reversed(left))], right.pop(_JOINT)
            _extend(left, right)
        else:
            inner_left, inner_right = left[-1], right[0]
            left.extend(right[1:])
        left, right = inner_left, inner_right
    _extend(left, right)
    return whole


def _extend(left: Any, right: Any) -> None:
    if isinstance(left, list):
        left.extend(right)
    elif left.keys().isdisjoint(right):
        left.update(right)
    else:
        raise repeated(next(key for key in right if key in left))


_CONTAINERS = {dict, list}


def count_keys(value: Any, depth: int = 0) -> int:
    """How many keys all objects in the document have together."""
    if type(value) not in _CONTAINERS:
        return 0
    if depth > MAX_DEPTH:
        raise too_deep()
    count = len(value) if type(value) is dict else 0
    inside = value.values() if type(value) is dict else value
    if _CONTAINERS.isdisjoint(map(type, inside)):
        return count
    return count + sum(count_keys(each, depth + 1) for each in inside)


def refuse_repeated(text: bytes) -> None:
    """InvalidRequest if a key is in one object twice. orjson keeps the last of two, others the
    first: nobody should have to guess."""
    json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise repeated(key)
        seen.add(key)


def repeated(key: str) -> InvalidRequest:
    return InvalidRequest(f"the key {key[:64]!r} stands twice in one object: send it once")


def too_deep() -> InvalidRequest:
    return InvalidRequest(
        f"the body is not JSON: it is nested too deeply (over {MAX_DEPTH} levels)"
    )


def not_json(error: orjson.JSONDecodeError, text: bytes) -> InvalidRequest:
    """What orjson says, in our words; ``text`` is what it read."""
    said = str(error)
    if "depth limit" in said:
        return too_deep()
    if b"NaN" in text or b"Infinity" in text:
        said += "; JSON has no NaN or Infinity: send such values as binary tensors under /v2"
    return InvalidRequest(f"the body is not JSON: {said}")


def _broken(what: str, at: int) -> InvalidRequest:
    return InvalidRequest(f"the body is not JSON: {what}, near byte {at}")


class Arrays:
    """Long arrays of numbers that were cut out of a document: views of the text that came."""

    def __init__(self) -> None:
        self._mark = secrets.token_hex(16)  # nobody can write it into a document
        self._texts: list[memoryview] = []

    def add(self, text: memoryview) -> bytes:
        """What stands for the array in the document: a list that is no list of anything else."""
        self._texts.append(text)
        return orjson.dumps([[self._mark, len(self._texts) - 1]])

    def of(self, value: Any) -> memoryview | None:
        """The array that ``value`` stands for, if it stands for one."""
        match value:
            case [[self._mark, int(place)]]:
                return self._texts[place]
        return None


ARRAY_BYTES = 16 * 1024  # shorter ones are parsed with the rest
_INDENT = 1024  # so much white space may be around an array


def cut_arrays(data: bytes) -> tuple[bytes, Arrays]:
    """The document without those of its keys' values that are long arrays of anything but strings
    and objects, and these arrays. Whether what is in them is JSON is not known yet."""
    arrays, view = Arrays(), memoryview(data)
    kept: list[bytes] = []
    done = 0
    for begin, end in _gaps(data):
        # What comes next is a key's quote, after a comma, or the brace that closes the object.
        last = data[end - _INDENT : end].rstrip(_SPACE)
        array_end = end - _INDENT + len(last)
        if last.endswith(b","):
            last = last[:-1].rstrip(_SPACE)
            array_end = end - _INDENT + len(last)
        first = data[begin : begin + _INDENT].lstrip(_SPACE)
        if first.startswith(b"[") and last.endswith(b"]"):
            array_begin = begin + _INDENT - len(first)
            kept += (data[done:array_begin], arrays.add(view[array_begin:array_end]))
            done = array_end
    if not kept:
        return data, arrays
    return b"".join((*kept, data[done:])), arrays


def _gaps(data: bytes) -> Iterator[tuple[int, int]]:
    """Where, after a colon, there are more than ``ARRAY_BYTES`` without quote, brace or colon."""
    at, in_string = 0, False
    last, after_colon = 0, False  # the special character before
    while at < len(data):
        end, window = _windows(data, at, in_string)
        codes = window.codes
        quotes = codes == _QUOTE
        kinds = codes | _BIT
        braces = ((kinds == _OPEN) | (kinds == _CLOSE)) & (codes >= _OPEN)
        shared_slots = np.flatnonzero(quotes | ((braces | (codes == _COLON)) & window.outside))
        if len(shared_slots):
            starts = np.concatenate(([last - at], shared_slots[:-1]))
            for index in np.flatnonzero(shared_slots - starts > ARRAY_BYTES):
                is_colon = codes[starts[index]] == _COLON if index else after_colon
                if is_colon:
                    yield at + int(starts[index]) + 1, at + int(shared_slots[index])
            last = at + int(shared_slots[-1])
            after_colon = bool(codes[shared_slots[-1]] == _COLON)
        at, in_string = end, window.in_string
