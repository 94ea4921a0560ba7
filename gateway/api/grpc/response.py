"""A ModelInferResponse taken apart without copying its tensors, as ``wire`` does requests."""

from collections.abc import Sequence
from typing import Any

from tritonclient.grpc import service_pb2

from gateway.api.grpc.wire import Parts, length_at, varint
from gateway.errors import UpstreamError
from gateway.limits.metering import Meter
from gateway.upstream.stream_call import FINAL

_ID_TAG, _PARAMETER_TAG, _OUTPUT_TAG, _RAW_TAG = (number << 3 | 2 for number in (3, 4, 5, 6))
_FINAL = b"".join((b"\n", varint(len(FINAL)), FINAL.encode()))  # the key of a parameter
ANSWER_TAG = b"\x12"  # infer_response of a ModelStreamInferResponse; else it has an error message


def ask_for_tokens(parts: Parts, meter: Meter) -> None:
    """Have the answers say what they cost; InvalidRequest as ``Meter.ask``."""
    for tensor in meter.ask(parts.header, parts.raws):
        entry = parts.header.inputs.add(name=tensor.name, datatype="BOOL", shape=tensor.shape)
        if parts.raws:
            parts.add_raw(bytes(tensor.raw))
        else:
            entry.contents.bool_contents.extend(map(bool, tensor.raw))


def metered(answer: bytes, meter: Meter) -> bytes:
    """The answer for its client, once what it cost is settled."""
    found = AnswerParts(memoryview(answer))
    found.read(meter)
    return found.message() if meter.hidden else answer


class AnswerParts:
    """``header`` is every field but the tensors' raw bytes; ``raws`` are views of those."""

    def __init__(self, data: memoryview) -> None:
        """UpstreamError for what is no such message."""
        heads: list[memoryview] = []
        self.raws: list[memoryview] = []
        self._tails: list[memoryview] = []
        at = 0
        while at < len(data):
            start, tag = at, data[at]
            at, size = length_at(data, at + 1)
            end = at + size
            if tag & 7 != 2 or end > len(data):
                raise UpstreamError("the server answered in an unknown form: report this")
            if tag == _RAW_TAG:
                self.raws.append(data[at:end])
                self._tails.append(data[start:end])
            else:
                heads.append(data[start:end])
            at = end
        self.header = service_pb2.ModelInferResponse.FromString(b"".join(heads))

    def read(self, meter: Meter) -> None:
        """Count it, and take out of it what its client did not ask for."""
        outputs: Sequence[Any] = self.header.outputs
        for place in reversed(range(len(outputs))):
            name = outputs[place].name
            meter.count(name, outputs[place].datatype, self.raws[place])
            if name in meter.hidden:
                del self.header.outputs[place], self.raws[place], self._tails[place]

    def message(self) -> bytes:
        return b"".join((self.header.SerializeToString(), *self._tails))


def within(answer: bytes) -> memoryview:
    """The ModelInferResponse in a ModelStreamInferResponse that begins with ``ANSWER_TAG``."""
    at, size = length_at(answer, 1)
    return memoryview(answer)[at : at + size]


def streamed(answer: bytes) -> bytes:
    """The other way round."""
    return b"".join((ANSWER_TAG, varint(len(answer)), answer))


class StreamAnswer:
    """One answer of a stream that is not an error: whose it is, and whether it is the last.

    Read as far as its tensors, which come behind in every message that a protobuf library wrote.
    """

    __slots__ = ("_after", "_before", "_inner", "has_outputs", "id", "is_last")

    def __init__(self, answer: bytes) -> None:
        """UpstreamError for what is no such message."""
        at, size = length_at(answer, 1)
        inner = memoryview(answer)[at : at + size]
        self.id = b""
        self.is_last = True  # Triton leaves the flag out where there can be only one
        self.has_outputs = False
        self._inner, self._before, self._after = inner, 0, 0
        at = 0
        while at < len(inner):
            start, tag = at, inner[at]
            if tag in (_OUTPUT_TAG, _RAW_TAG):
                self.has_outputs = True
                break
            at, size = length_at(inner, at + 1)
            content = inner[at : at + size]
            at += size
            if tag & 7 != 2 or at > len(inner):
                raise UpstreamError("the server answered in an unknown form: report this")
            if tag == _ID_TAG:
                self.id, self._before, self._after = bytes(content), start, at
            elif tag == _PARAMETER_TAG and bytes(content).startswith(_FINAL):
                self.is_last = not bytes(content).endswith(b"\x08\x00")  # bool_param is false

    def for_client(self, client_id: bytes) -> bytes:
        """The answer with the client's own id, which may be ''."""
        inner = self._inner
        own = b"".join((bytes([_ID_TAG]), varint(len(client_id)), client_id)) if client_id else b""
        size = len(inner) - (self._after - self._before) + len(own)
        return b"".join(
            (ANSWER_TAG, varint(size), inner[: self._before], own, inner[self._after :])
        )
