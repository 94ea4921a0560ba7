"""A ModelInferRequest taken apart without copying its tensors.

Parsing all of it with protobuf copies every tensor twice: 1.5 ms for 1 MB and 53 ms for 32 MB. This
takes 4 us, and for the smallest request 1 us more than protobuf.
"""

from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from gateway.errors import Malformed

# Each field of the message is length-delimited, and its number below 16: a tag is one byte.
_TAGS = frozenset(
    field.number << 3 | 2 for field in service_pb2.ModelInferRequest.DESCRIPTOR.fields
)
_RAW_TAG = 7 << 3 | 2  # raw_input_contents
_MAX_LENGTH_BYTES = 5


class Parts:
    """``header`` is every field but the tensors' raw bytes; ``raws`` are views of those."""

    __slots__ = ("_as_it_came", "_data", "_tails", "header", "raws")

    def __init__(self, data: bytes) -> None:
        """Malformed for what is no such message, or has a field that this protocol has not."""
        view = memoryview(data)
        heads: list[memoryview] = []
        self._tails: list[memoryview] = []
        self.raws: list[Any] = []
        self._data = data
        at = 0
        while at < len(data):
            start, tag = at, data[at]
            at, size = length_at(data, at + 1)
            field = view[start : at + size]
            if tag not in _TAGS or at + size > len(data):
                raise _unreadable()
            if tag == _RAW_TAG:
                self.raws.append(view[at : at + size])
                self._tails.append(field)
            else:
                heads.append(field)
            at += size
        self._as_it_came = b"".join(heads)
        try:
            self.header = service_pb2.ModelInferRequest.FromString(self._as_it_came)
        except DecodeError:
            raise _unreadable() from None
        self.header.DiscardUnknownFields()

    def add_raw(self, raw: bytes) -> None:
        """The bytes of an input that was added to the header, behind those that came."""
        self._tails.append(memoryview(b"".join((bytes([_RAW_TAG]), varint(len(raw)), raw))))

    def message(self) -> bytes:
        """With the header as it is now; the very bytes that came, if it is as it came."""
        header: bytes = self.header.SerializeToString()
        return self._data if header == self._as_it_came else b"".join((header, *self._tails))


def length_at(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Where the field's content begins, and how long it is."""
    size = 0
    for place, byte in enumerate(data[at : at + _MAX_LENGTH_BYTES]):
        size |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return at + place + 1, size
    raise _unreadable()


def varint(number: int) -> bytes:
    """As protobuf writes lengths."""
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*written, number])


def _unreadable() -> Malformed:
    return Malformed("the message is not a ModelInferRequest: use a client for KServe V2 or Triton")
