"""One text being generated: the contract of Triton's vLLM backend, asked and read."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import orjson
from tritonclient.grpc import service_pb2

from gateway.errors import UpstreamError
from gateway.limits.limiter import Admission
from gateway.models.catalogue import Model
from gateway.models.rows import tensor_of
from gateway.models.tensors import check_model, message_of, unpack
from gateway.models.text_binding import Binding
from gateway.upstream.server import log_upstream

FINISHES = frozenset({"stop", "length", "content_filter"})
_NOT_YET = frozenset({"", "None"})  # as vLLM's backend says that it goes on


@dataclass(frozen=True)
class Ask:
    """What a request asks for: the input that it fills, how to sample, how to answer."""

    source: str
    values: Sequence[Any]
    sampling: dict[str, Any]
    stream: bool
    include_usage: bool
    prefix: str = ""  # shown before the model's text

    def message(self, model: Model, binding: Binding) -> service_pb2.ModelInferRequest:
        """InvalidRequest when the values do not fit the model's tensors."""
        tensors = [tensor_of(model, self.source, self.values)]
        if binding.takes:
            parameters = {
                name: value for name, value in self.sampling.items() if name in binding.takes
            }
            tensors.append(tensor_of(model, binding.sampling, [orjson.dumps(parameters)]))
        for name, value in binding.set_flags(model.inputs).items():
            tensors.append(tensor_of(model, name, [value]))
        check_model(model, tensors)
        return message_of(model.name, tensors)


class StopFilter:
    """Lets text through up to the first stop; holds back what may turn out to begin one.

    Kept by us too: not every model does, and a stop may lie across two pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What can be shown now; after a stop, nothing."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        shown = len(text) - self._beginning(text)
        self._held = text[shown:]
        return text[:shown]

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """How many of the last characters a stop could begin with."""
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        for length in range(longest, 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0


class Generation:
    """When all was fed it knows why the text ended and what it cost.

    Tokens are those that the model counted, None if it does not count: a guess is never shown.
    """

    def __init__(self, binding: Binding, ask: Ask, admission: Admission | None) -> None:
        self._binding, self._admission = binding, admission
        self._max_tokens = ask.sampling.get("max_tokens")
        self._stops = StopFilter(ask.sampling.get("stop", ()))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._answers = 0
        self._told = ""
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None

    def feed(self, answer: service_pb2.ModelInferResponse) -> str:
        """The text that can be shown now; UpstreamError when the model gave up."""
        text = self._stops.feed(self._read(answer))
        if self._admission and self.prompt_tokens is not None:
            # As it goes: a client that leaves pays for what it got.
            self._admission.settle(self.prompt_tokens + (self.completion_tokens or 0))
        return text

    def rest(self) -> str:
        """The text that was held back, when nothing more comes."""
        return self._stops.feed(self._decoder.decode(b"", final=True)) + self._stops.rest()

    @property
    def has_stopped(self) -> bool:
        """Whether a stop text came: what the model says after it is not wanted."""
        return self._stops.stopped

    @property
    def finish_reason(self) -> str:
        if self.has_stopped:
            return "stop"
        if self._told in FINISHES:
            return self._told
        # A model that does not say: an answer has a token at least.
        used = self._answers if self.completion_tokens is None else self.completion_tokens
        return "length" if self._max_tokens and used >= self._max_tokens else "stop"

    @property
    def usage(self) -> dict[str, int] | None:
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def _read(self, answer: service_pb2.ModelInferResponse) -> str:
        """The answer's text; what else it says is kept."""
        self._answers += 1
        binding, raw_text = self._binding, b""
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
            if output.name == binding.text:
                raw_text = b"".join(unpack("BYTES", [-1], raw))
            elif output.name == binding.finish_reason:
                self._told = b"".join(unpack("BYTES", [-1], raw)).decode("utf-8", "replace")
            elif output.name == binding.input_tokens:
                self.prompt_tokens = _sum(output, raw)
            elif output.name == binding.output_tokens:
                self.completion_tokens = (self.completion_tokens or 0) + _sum(output, raw)
        if self._told not in FINISHES | _NOT_YET:
            log_upstream(grpc.StatusCode.UNKNOWN, f"finish_reason {self._told!r}")
            raise UpstreamError("the model gave up in the middle of its answer: try again")
        return self._decoder.decode(raw_text)


def _sum(output: Any, raw: bytes) -> int:
    return int(unpack(output.datatype, [-1], raw).sum())
