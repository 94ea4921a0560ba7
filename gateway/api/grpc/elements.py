"""How many elements a tensor has that came as protobuf's own values: counted where they lie.

Parsed, a list of ten million small numbers would be 16 times as large as it came, and each element
that Python looks at costs 50 ns.
"""

import numpy as np

from gateway.api.grpc.wire import Fields, fields_of, length_at, unreadable
from gateway.errors import InvalidRequest

MAX_STRINGS = 2**15  # of a request: 15 ms to count them, in which nobody else is answered
_FIXED_BYTES = {"fp32_contents": 4, "fp64_contents": 8}
_SLICE = 1 << 20  # so much is looked at in one go: numpy's own arrays are larger
_MAX_VARINT_BYTES = 10
_MAX_PIECES = 64  # protobuf lets a list come in several: writers send one


def count_elements(contents: memoryview, name: str, number: int) -> int:
    """Of an InferTensorContents that has nothing but the field of this name and number, and that
    packed; InvalidRequest otherwise."""
    tag = number << 3 | 2
    if name == "bytes_contents":
        return _count_strings(contents, tag)
    count = 0
    for _, _, packed in fields_of(contents, Fields(_MAX_PIECES, {tag: None})):
        size = _FIXED_BYTES.get(name)
        if size is None:
            count += _count_varints(packed)
        elif len(packed) % size:
            raise unreadable()
        else:
            count += len(packed) // size
    return count


def too_many_strings() -> InvalidRequest:
    return InvalidRequest(
        f"at most {MAX_STRINGS} strings of a request go in bytes_contents: send them in "
        "raw_input_contents"
    )


def _count_strings(contents: memoryview, tag: int) -> int:
    data = bytes(contents)
    at = count = 0
    while at < len(data):
        if data[at] != tag:
            raise unreadable()
        size = data[at + 1] if at + 1 < len(data) else 0x80
        if size < 0x80:
            at += 2 + size
        else:
            start, size = length_at(data, at + 1)
            at = start + size
        count += 1
        if count > MAX_STRINGS:
            raise too_many_strings()
    if at != len(data):
        raise unreadable()
    return count


def _count_varints(packed: memoryview) -> int:
    data = np.frombuffer(packed, np.uint8)
    if len(data) and data[-1] >= 0x80:
        raise unreadable()
    count = 0
    begun = 0  # bytes of a number that goes on in the next slice
    for at in range(0, len(data), _SLICE):
        ends = np.flatnonzero(data[at : at + _SLICE] < 0x80)
        count += len(ends)
        longest = int(np.diff(ends, prepend=-1 - begun).max()) if len(ends) else _SLICE
        begun = min(_SLICE, len(data) - at) - 1 - int(ends[-1]) if len(ends) else _SLICE
        if longest > _MAX_VARINT_BYTES or begun >= _MAX_VARINT_BYTES:
            raise unreadable()
    return count
