"""A ModelInferRequest taken apart without copying its tensors, and within bounds.

Parsing all of it with protobuf copies every tensor twice (1.5 ms for 1 MB, 53 ms for 32 MB), and
makes objects of whatever a client sends: five million empty fields in 10 MB were 25 s and 2 GB.
This looks at the outer fields only, of which there are no more than the model can need. Protobuf
reads what is left of them: little, since nothing in it is read that was not counted before.
"""

from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from gateway.errors import InvalidRequest

# Each field of the message is length-delimited, and its number below 16: a tag is one byte.
_TAGS = frozenset(
    field.number << 3 | 2 for field in service_pb2.ModelInferRequest.DESCRIPTOR.fields
)
_NAME_TAG, _PARAMETER_TAG, _INPUT_TAG, _OUTPUT_TAG, _RAW_TAG = (n << 3 | 2 for n in (1, 4, 5, 6, 7))
_CONTENTS_TAG = 5 << 3 | 2  # of an input
_MAX_LENGTH_BYTES = 5

MAX_PARAMETERS = 64  # of the request; as many of each input and output
FEW_FIELDS = 64  # so many may come before the model is asked how many it can need
# Protobuf may read so much, whatever it is. Beyond, the fields in it are counted first.
SMALL_BYTES = 4096
MAX_HEADER_BYTES = 256 * 1024  # names, parameters, shapes: all but the tensors' elements

# How many inputs and outputs the model of this name has; GatewayError for one that is not served.
SizesOf = Callable[[str], tuple[int, int]]


class Parts:
    """``header`` is every field but the tensors' elements; ``raws`` are views of the raw ones, and
    ``contents`` of the typed ones (of InferTensorContents, by the place of the input)."""

    __slots__ = ("_as_it_came", "_data", "_tails", "contents", "header", "raws")

    def __init__(self, data: bytes, sizes_of: SizesOf) -> None:
        """InvalidRequest for what is no such message, has a field that this protocol has not, or
        more fields than its model can need; GatewayError as ``sizes_of``, which is asked only for a
        message of many fields."""
        view = memoryview(data)
        heads: list[memoryview] = []
        inputs: list[tuple[int, memoryview]] = []  # where in heads they stand, and what they hold
        self._tails: list[memoryview] = []
        self.raws: list[Any] = []
        self.contents: dict[int, memoryview] = {}
        self._data = data
        at, left, name = 0, FEW_FIELDS, memoryview(b"")
        is_asked = False
        while at < len(data):
            start, tag = at, data[at]
            at, size = length_at(data, at + 1)
            content = view[at : at + size]
            at += size
            if tag not in _TAGS or at > len(data):
                raise unreadable()
            if not left:
                if is_asked:
                    raise _too_many_fields()
                n_inputs, n_outputs = sizes_of(_text(name))
                left, is_asked = MAX_PARAMETERS + 2 * n_inputs + n_outputs, True
            left -= 1
            if tag == _RAW_TAG:
                self.raws.append(content)
                self._tails.append(view[start:at])
                continue
            if tag == _INPUT_TAG:
                inputs.append((len(heads), content))
            elif tag == _NAME_TAG:
                name = content
            heads.append(view[start:at])
        if sum(map(len, heads)) > SMALL_BYTES:
            self._bound(heads, inputs)
        self._as_it_came = b"".join(heads)
        try:
            self.header = service_pb2.ModelInferRequest.FromString(self._as_it_came)
        except DecodeError:
            raise unreadable() from None
        self.header.DiscardUnknownFields()

    def add_raw(self, raw: bytes) -> None:
        """The bytes of an input that was added to the header, behind those that came."""
        self._tails.append(memoryview(b"".join((bytes([_RAW_TAG]), varint(len(raw)), raw))))

    def message(self) -> bytes:
        """With the header as it is now; the very bytes that came, if it is as it came."""
        if self.contents:
            return b"".join((*self._with_contents(), *self._tails))
        header: bytes = self.header.SerializeToString()
        return self._data if header == self._as_it_came else b"".join((header, *self._tails))

    def _bound(self, heads: list[memoryview], inputs: list[tuple[int, memoryview]]) -> None:
        """Take large typed elements out of the heads, and see that the rest has few fields."""
        for place, (head, data) in enumerate(inputs):
            if len(data) <= SMALL_BYTES:
                continue
            kept: list[memoryview] = []
            for tag, field, content in fields_of(data, _INPUT_FIELDS):
                if tag == _CONTENTS_TAG and len(content) > SMALL_BYTES:
                    if place in self.contents:
                        raise InvalidRequest("an input has its contents twice: send them once")
                    self.contents[place] = content
                else:
                    kept.append(field)
            heads[head] = memoryview(_field(_INPUT_TAG, kept))
        if sum(map(len, heads)) > MAX_HEADER_BYTES:
            raise InvalidRequest(
                f"names, parameters and shapes are over {MAX_HEADER_BYTES} bytes: send data as "
                "tensors"
            )
        for field in heads:
            if len(field) > SMALL_BYTES:
                at, _ = length_at(field, 1)
                _count_fields(field[at:], _NESTED.get(field[0]))

    def _with_contents(self) -> Iterable[bytes | memoryview]:
        inputs = list(self.header.inputs)
        rest = service_pb2.ModelInferRequest()
        rest.CopyFrom(self.header)
        rest.ClearField("inputs")
        yield rest.SerializeToString()
        for place, entry in enumerate(inputs):
            pieces: list[bytes | memoryview] = [entry.SerializeToString()]
            if place in self.contents:
                content = self.contents[place]
                pieces += (bytes([_CONTENTS_TAG]), varint(len(content)), content)
            yield bytes([_INPUT_TAG])
            yield varint(sum(map(len, pieces)))
            yield from pieces


class Fields:
    """What a nested message may hold: of each tag, what is in it, and how many fields in all."""

    def __init__(self, most: int, tags: dict[int, "Fields | None"]) -> None:
        self.most, self.tags = most, tags


def fields_of(data: memoryview, allowed: Fields) -> Iterable[tuple[int, memoryview, memoryview]]:
    """(tag, the whole field, its content) of each field; InvalidRequest for one that is not
    allowed, and
    where there are too many. A tag's wire type says where it ends: a content is empty but for
    length-delimited fields."""
    at = seen = 0
    while at < len(data):
        start, tag = at, data[at]
        seen += 1
        if tag not in allowed.tags or seen > allowed.most:
            raise _too_many_fields()
        at += 1
        content = data[at:at]
        if tag & 7 == 2:
            at, size = length_at(data, at)
            content = data[at : at + size]
            at += size
        elif tag & 7 == 0:
            at = _varint_end(data, at)
        else:
            at += 8 if tag & 7 == 1 else 4
        if at > len(data):
            raise unreadable()
        yield tag, data[start:at], content


# Of the messages in a request, each field with its tag. A shape's dimensions come packed, or one by
# one (tag 24). No model has more than a few of anything here.
_VALUE = Fields(8, {8: None, 16: None, 26: None, 33: None, 40: None})  # InferParameter
_ENTRY = Fields(8, {10: None, 18: _VALUE})
_SHAPE = 26
_INPUT_FIELDS = Fields(
    MAX_PARAMETERS + 32,
    {10: None, 18: None, 24: None, _SHAPE: None, 34: _ENTRY, _CONTENTS_TAG: None},
)
_OUTPUT_FIELDS = Fields(MAX_PARAMETERS + 8, {10: None, 18: _ENTRY})
_NESTED = {_PARAMETER_TAG: _ENTRY, _INPUT_TAG: _INPUT_FIELDS, _OUTPUT_TAG: _OUTPUT_FIELDS}
_MAX_SHAPE_BYTES = 64 * 10


def _count_fields(data: memoryview, allowed: Fields | None) -> None:
    if allowed is None:
        return
    for tag, _, content in fields_of(data, allowed):
        nested = allowed.tags[tag]
        if allowed is _INPUT_FIELDS and tag == _SHAPE and len(content) > _MAX_SHAPE_BYTES:
            raise InvalidRequest("an input's shape has too many dimensions")
        if nested and len(content) > SMALL_BYTES:
            _count_fields(content, nested)


def _field(tag: int, pieces: Iterable[memoryview]) -> bytes:
    content = b"".join(pieces)
    return b"".join((bytes([tag]), varint(len(content)), content))


def _text(name: memoryview) -> str:
    return bytes(name[:1024]).decode("utf-8", "replace")


def length_at(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Where the field's content begins, and how long it is."""
    size = 0
    for place, byte in enumerate(data[at : at + _MAX_LENGTH_BYTES]):
        size |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return at + place + 1, size
    raise unreadable()


def _varint_end(data: memoryview, at: int) -> int:
    for place, byte in enumerate(data[at : at + 10]):
        if byte < 0x80:
            return at + place + 1
    raise unreadable()


def varint(number: int) -> bytes:
    """As protobuf writes lengths."""
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*written, number])


def unreadable() -> InvalidRequest:
    return InvalidRequest(
        "the message is not a ModelInferRequest: use a client for KServe V2 or Triton"
    )


def _too_many_fields() -> InvalidRequest:
    return InvalidRequest(
        "the message has fields that this protocol has not, or too many of them: use a client for "
        "KServe V2 or Triton, and raw_input_contents for many elements"
    )
