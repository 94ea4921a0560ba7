"""A ModelInferResponse taken apart without copying its tensors, as ``wire`` does requests."""

from collections.abc import Sequence
from typing import Any

from tritonclient.grpc import service_pb2

from gateway.addons.grpc_door.wire import Parts, length_at, varint
from gateway.addons.metering import Meter
from gateway.errors import UpstreamBroke

_RAW_TAG = 6 << 3 | 2  # raw_output_contents
ANSWER_TAG = b"\x12"  # infer_response of a ModelStreamInferResponse; else it has an error message


def ask_for_tokens(parts: Parts, meter: Meter) -> None:
    """Have the answers say what they cost; Malformed as ``Meter.ask``."""
    for tensor in meter.ask(parts.header, parts.raws):
        entry = parts.header.inputs.add(name=tensor.name, datatype="BOOL", shape=tensor.shape)
        if parts.raws:
            parts.add_raw(tensor.raw)
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
        """UpstreamBroke for what is no such message."""
        heads: list[memoryview] = []
        self.raws: list[memoryview] = []
        self._tails: list[memoryview] = []
        at = 0
        while at < len(data):
            start, tag = at, data[at]
            at, size = length_at(data, at + 1)
            end = at + size
            if tag & 7 != 2 or end > len(data):
                raise UpstreamBroke("the server answered in an unknown form: report this")
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
