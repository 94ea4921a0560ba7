"""Parses a ModelInferRequest without copying its tensors, and within bounds.

Parsing all of it with protobuf copies every tensor twice (1.5 ms for 1 MB, 53 ms for 32 MB), and
creates objects for whatever a client sends: five million empty fields in 10 MB took 25 s and 2 GB.
This reads only the outer fields, and no more of them than the model can need. Protobuf parses the
rest, which is little: nothing reaches it whose fields were not counted first.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from gateway.errors import InvalidRequest
from modelspec.elements import encode

# Every field of the message is length-delimited and numbered below 16: a tag is one byte.
_TAGS = frozenset(
    field.number << 3 | 2 for field in service_pb2.ModelInferRequest.DESCRIPTOR.fields
)
_NAME_TAG, _PARAMETER_TAG, _INPUT_TAG, _OUTPUT_TAG, _RAW_TAG = (n << 3 | 2 for n in (1, 4, 5, 6, 7))
_CONTENTS_TAG = 5 << 3 | 2  # of an input
_MAX_LENGTH_BYTES = 5

MAX_PARAMETERS = 64  # of the request; the same for each input and output
FEW_FIELDS = 64  # read before we look up how many the model can need
# Protobuf may parse this much unseen. In anything larger, the fields are counted first.
SMALL_BYTES = 4096
MAX_HEADER_BYTES = 256 * 1024  # names, parameters, shapes: all but the tensors' elements

# The numbers of inputs and outputs of the model of this name; GatewayError if it is not served.
SizesOf = Callable[[str], tuple[int, int]]


class RequestParts:
    """``header`` has every field but the tensors' elements; ``raws`` are views of the raw elements,
    and ``contents`` of the typed ones (InferTensorContents, by the index of the input)."""

    __slots__ = ("_data", "_original_header", "_raw_fields", "contents", "header", "raws")

    def __init__(self, data: bytes, sizes_of: SizesOf) -> None:
        """Raises InvalidRequest for data that is not a ModelInferRequest, or has unknown fields or
        more fields than its model can need; GatewayError as ``sizes_of``, which is called only for
        a message of many fields."""
        view = memoryview(data)
        header_fields: list[memoryview] = []
        inputs: list[tuple[int, memoryview]] = []  # index in header_fields, content
        self._raw_fields: list[memoryview] = []
        self.raws: list[Any] = []
        self.contents: dict[int, memoryview] = {}
        self._data = data
        name = memoryview(b"")
        fields_left = FEW_FIELDS
        is_looked_up = False
        start = 0
        while start < len(data):
            tag = data[start]
            content_start, size = length_at(data, start + 1)
            end = content_start + size
            content = view[content_start:end]
            if tag not in _TAGS or end > len(data):
                raise unreadable()
            if not fields_left:
                if is_looked_up:
                    raise _too_many_fields()
                n_inputs, n_outputs = sizes_of(_text(name))
                fields_left = MAX_PARAMETERS + 2 * n_inputs + n_outputs
                is_looked_up = True
            fields_left -= 1
            if tag == _RAW_TAG:
                self.raws.append(content)
                self._raw_fields.append(view[start:end])
            else:
                if tag == _INPUT_TAG:
                    inputs.append((len(header_fields), content))
                elif tag == _NAME_TAG:
                    name = content
                header_fields.append(view[start:end])
            start = end
        if sum(map(len, header_fields)) > SMALL_BYTES:
            self._bound(header_fields, inputs)
        self._original_header = b"".join(header_fields)
        try:
            self.header = service_pb2.ModelInferRequest.FromString(self._original_header)
        except DecodeError:
            raise unreadable() from None
        self.header.DiscardUnknownFields()

    def elements(self) -> list[tuple[bool, bytes | memoryview]]:
        """Of each input its elements as they are sent, and whether these are raw bytes (else they
        are protobuf's)."""
        raws = [field[length_at(field, 1)[0] :] for field in self._raw_fields]
        if raws:
            return [(True, raw) for raw in raws]
        return [
            (
                False,
                self.contents[index]
                if index in self.contents
                else entry.contents.SerializeToString(deterministic=True),
            )
            for index, entry in enumerate(self.header.inputs)
        ]

    def text_elements(self) -> Sequence[bytes | memoryview]:
        """Of each input of a language model its elements as raw bytes, however they were sent:
        BYTES with the length before each, BOOL and INT64; nothing of other dtypes that were sent as
        protobuf's."""
        if self.raws:
            return self.raws
        parsed = service_pb2.InferTensorContents.FromString
        return [
            _raw(parsed(bytes(self.contents[index])) if index in self.contents else entry.contents)
            for index, entry in enumerate(self.header.inputs)
        ]

    def add_raw(self, raw: bytes) -> None:
        """Append the bytes of an input that was added to the header."""
        self._raw_fields.append(memoryview(b"".join((bytes([_RAW_TAG]), varint(len(raw)), raw))))

    def message(self) -> bytes:
        """The request with its current header; the very bytes received if that is unchanged."""
        if self.contents:
            return b"".join((*self._with_contents(), *self._raw_fields))
        header: bytes = self.header.SerializeToString()
        if header == self._original_header:
            return self._data
        return b"".join((header, *self._raw_fields))

    def _bound(self, header_fields: list[memoryview], inputs: list[tuple[int, memoryview]]) -> None:
        """Take large typed elements out of the header fields, and check that the rest has few
        fields."""
        for index, (position, data) in enumerate(inputs):
            if len(data) <= SMALL_BYTES:
                continue
            small_fields: list[memoryview] = []
            for tag, field, content in fields_of(data, _INPUT_FIELDS):
                if tag == _CONTENTS_TAG and len(content) > SMALL_BYTES:
                    if index in self.contents:
                        raise InvalidRequest("an input has its contents twice: send them once")
                    self.contents[index] = content
                else:
                    small_fields.append(field)
            header_fields[position] = memoryview(_field(_INPUT_TAG, small_fields))
        if sum(map(len, header_fields)) > MAX_HEADER_BYTES:
            raise InvalidRequest(
                f"names, parameters and shapes are over {MAX_HEADER_BYTES} bytes: send data as "
                "tensors"
            )
        for field in header_fields:
            if len(field) > SMALL_BYTES:
                content_start, _ = length_at(field, 1)
                _count_fields(field[content_start:], _NESTED.get(field[0]))

    def _with_contents(self) -> Iterable[bytes | memoryview]:
        inputs = list(self.header.inputs)
        rest = service_pb2.ModelInferRequest()
        rest.CopyFrom(self.header)
        rest.ClearField("inputs")
        yield rest.SerializeToString()
        for index, entry in enumerate(inputs):
            pieces: list[bytes | memoryview] = [entry.SerializeToString()]
            if index in self.contents:
                content = self.contents[index]
                pieces += (bytes([_CONTENTS_TAG]), varint(len(content)), content)
            yield bytes([_INPUT_TAG])
            yield varint(sum(map(len, pieces)))
            yield from pieces


class Fields:
    """The fields allowed in a nested message: at most ``limit`` in all, each tag with the fields
    nested in it."""

    def __init__(self, limit: int, tags: dict[int, "Fields | None"]) -> None:
        self.limit, self.tags = limit, tags


def fields_of(data: memoryview, allowed: Fields) -> Iterable[tuple[int, memoryview, memoryview]]:
    """Yield (tag, whole field, content) for each field; raises InvalidRequest for a field that is
    not allowed, and for too many. The tag's wire type tells where a field ends; only
    length-delimited fields have a content that is not empty."""
    start = count = 0
    while start < len(data):
        tag = data[start]
        count += 1
        if tag not in allowed.tags or count > allowed.limit:
            raise _too_many_fields()
        end = start + 1
        content = data[end:end]
        if tag & 7 == 2:
            content_start, size = length_at(data, end)
            end = content_start + size
            content = data[content_start:end]
        elif tag & 7 == 0:
            end = _varint_end(data, end)
        else:
            end += 8 if tag & 7 == 1 else 4
        if end > len(data):
            raise unreadable()
        yield tag, data[start:end], content
        start = end


# The fields of the messages in a request, by tag. A shape's dimensions come packed, or one by one
# (tag 24). No model has more than a few of anything here.
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


def _raw(contents: service_pb2.InferTensorContents) -> bytes:
    if contents.bytes_contents:
        return encode("BYTES", contents.bytes_contents)
    if contents.int64_contents:  # not ``encode``, which looks at each: there may be many
        return array("q", contents.int64_contents).tobytes()
    return bytes(contents.bool_contents)


def _field(tag: int, pieces: Iterable[memoryview]) -> bytes:
    content = b"".join(pieces)
    return b"".join((bytes([tag]), varint(len(content)), content))


def _text(name: memoryview) -> str:
    return bytes(name[:1024]).decode("utf-8", "replace")


def length_at(data: bytes | memoryview, offset: int) -> tuple[int, int]:
    """Where the field's content begins, and its size, from the length at this offset."""
    size = 0
    for index, byte in enumerate(data[offset : offset + _MAX_LENGTH_BYTES]):
        size |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return offset + index + 1, size
    raise unreadable()


def _varint_end(data: memoryview, offset: int) -> int:
    for index, byte in enumerate(data[offset : offset + 10]):
        if byte < 0x80:
            return offset + index + 1
    raise unreadable()


def varint(number: int) -> bytes:
    """The number as protobuf encodes lengths."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def unreadable() -> InvalidRequest:
    return InvalidRequest(
        "the message is not a ModelInferRequest: use a client for KServe V2 or Triton"
    )


def _too_many_fields() -> InvalidRequest:
    return InvalidRequest(
        "the message has unknown fields, or too many of them: use a client for KServe V2 or "
        "Triton, and raw_input_contents for many elements"
    )
