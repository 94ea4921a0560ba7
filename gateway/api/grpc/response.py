"""Parses a ModelInferResponse without copying its tensors, as ``wire`` does for requests."""

from collections.abc import Sequence

from tritonclient.grpc import service_pb2

from gateway.api.grpc.wire import RequestParts, length_at, varint
from gateway.errors import UpstreamError
from gateway.models.metering import Meter
from gateway.upstream.stream_call import FINAL

_VERSION_TAG = b"\x12"
_ID_TAG, _PARAMETER_TAG, _OUTPUT_TAG, _RAW_TAG = (number << 3 | 2 for number in (3, 4, 5, 6))
_FINAL = b"".join((b"\n", varint(len(FINAL)), FINAL.encode()))  # the key of a parameter
# infer_response of a ModelStreamInferResponse; one that begins otherwise has an error message.
RESPONSE_TAG = b"\x12"


def request_token_counts(parts: RequestParts, meter: Meter) -> None:
    """Have the responses carry their token counts; raises InvalidRequest as ``Meter.ask``."""
    for tensor in meter.ask(parts.header, parts.raws):
        entry = parts.header.inputs.add(name=tensor.name, datatype="BOOL", shape=tensor.shape)
        if parts.raws:
            parts.add_raw(bytes(tensor.raw))
        else:
            entry.contents.bool_contents.extend(map(bool, tensor.raw))


def metered(response: bytes, meter: Meter) -> bytes:
    """Settle what the response cost, and return it as its client gets it."""
    parts = ResponseParts(memoryview(response))
    parts.read(meter)
    return parts.message() if meter.hidden else response


class ResponseParts:
    """``header`` is every field but the tensors' raw bytes; ``raws`` are views of those."""

    def __init__(self, data: memoryview) -> None:
        """Raises UpstreamError for data that is not a ModelInferResponse."""
        header_fields: list[memoryview] = []
        self.raws: list[memoryview] = []
        self._raw_fields: list[memoryview] = []
        start = 0
        while start < len(data):
            tag = data[start]
            content_start, size = length_at(data, start + 1)
            end = content_start + size
            if tag & 7 != 2 or end > len(data):
                raise _unreadable()
            if tag == _RAW_TAG:
                self.raws.append(data[content_start:end])
                self._raw_fields.append(data[start:end])
            else:
                header_fields.append(data[start:end])
            start = end
        self.header = service_pb2.ModelInferResponse.FromString(b"".join(header_fields))

    def read(self, meter: Meter) -> None:
        """Count its tokens, and remove the outputs that its client did not ask for."""
        outputs: Sequence[service_pb2.ModelInferResponse.InferOutputTensor] = self.header.outputs
        for index in reversed(range(len(outputs))):
            name = outputs[index].name
            meter.count(name, outputs[index].datatype, self.raws[index])
            if name in meter.hidden:
                del self.header.outputs[index], self.raws[index], self._raw_fields[index]

    def message(self) -> bytes:
        """The ModelInferResponse, serialised, without the outputs removed."""
        return b"".join((self.header.SerializeToString(), *self._raw_fields))


def version_of(response: bytes) -> str:
    """The model's version in a serialized ModelInferResponse, or '' if it is not where protobuf
    libraries write it: after the name, which is first."""
    start = 0
    if response.startswith(b"\n"):
        content_start, size = length_at(response, 1)
        start = content_start + size
    if not response.startswith(_VERSION_TAG, start):
        return ""
    content_start, size = length_at(response, start + 1)
    return bytes(response[content_start : content_start + size]).decode("utf-8", "replace")


def with_id(response: bytes, identifier: str) -> bytes:
    """A serialized ModelInferResponse that has no id, with this one."""
    if not identifier:
        return response
    data = identifier.encode()
    return b"".join((response, bytes([_ID_TAG]), varint(len(data)), data))


def inner_response(stream_response: bytes) -> memoryview:
    """The ModelInferResponse in a ModelStreamInferResponse that begins with ``RESPONSE_TAG``."""
    start, size = length_at(stream_response, 1)
    return memoryview(stream_response)[start : start + size]


def as_stream_response(response: bytes) -> bytes:
    """The ModelInferResponse, wrapped in a ModelStreamInferResponse."""
    return b"".join((RESPONSE_TAG, varint(len(response)), response))


def _unreadable() -> UpstreamError:
    return UpstreamError("the server's response cannot be parsed: report the request id")


class StreamResponse:
    """One response of a stream that is not an error: its request, and whether it is the last one.

    Parsed up to its tensors, which come last in every message that a protobuf library wrote.
    """

    __slots__ = ("_id_end", "_id_start", "_inner", "has_outputs", "id", "is_last")

    def __init__(self, stream_response: bytes) -> None:
        """Raises UpstreamError for data that is not such a message."""
        inner = inner_response(stream_response)
        self.id = b""
        self.is_last = True  # Triton leaves the flag out where there can be only one
        self.has_outputs = False
        self._inner = inner
        self._id_start = self._id_end = 0
        start = 0
        while start < len(inner):
            tag = inner[start]
            if tag in (_OUTPUT_TAG, _RAW_TAG):
                self.has_outputs = True
                break
            content_start, size = length_at(inner, start + 1)
            end = content_start + size
            content = inner[content_start:end]
            if tag & 7 != 2 or end > len(inner):
                raise _unreadable()
            if tag == _ID_TAG:
                self.id, self._id_start, self._id_end = bytes(content), start, end
            elif tag == _PARAMETER_TAG and bytes(content).startswith(_FINAL):
                self.is_last = not bytes(content).endswith(b"\x08\x00")  # bool_param is false
            start = end

    def for_client(self, client_id: bytes) -> bytes:
        """The response with the client's own request id, which may be ''."""
        inner = self._inner
        id_field = b""
        if client_id:
            id_field = b"".join((bytes([_ID_TAG]), varint(len(client_id)), client_id))
        size = len(inner) - (self._id_end - self._id_start) + len(id_field)
        return b"".join(
            (RESPONSE_TAG, varint(size), inner[: self._id_start], id_field, inner[self._id_end :])
        )
