"""Generating one text, by the contract of Triton's vLLM backend: requests and responses."""

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
from gateway.upstream.triton_errors import log_upstream

FINISH_REASONS = frozenset({"stop", "length", "content_filter"})
_UNFINISHED = frozenset({"", "None"})  # vLLM's backend while the text goes on


@dataclass(frozen=True)
class GenerationRequest:
    """A request for one text: the input to fill, how to sample, how to respond."""

    source: str
    values: Sequence[Any]
    sampling: dict[str, Any]
    stream: bool
    include_usage: bool
    prefix: str = ""  # returned before the model's text (``echo``)

    def message(self, model: Model, binding: Binding) -> service_pb2.ModelInferRequest:
        """Triton's request; raises InvalidRequest when the values do not fit the model's inputs."""
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
    """Passes text up to the first stop; holds back what may turn out to be the start of one.

    Applied by us too: not every model applies stops, and one may span two pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._pending = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The text that can be sent now; after a stop, none."""
        if self.stopped:
            return ""
        text = self._pending + text
        positions = [text.find(stop) for stop in self._stops if stop in text]
        if positions:
            self.stopped, self._pending = True, ""
            return text[: min(positions)]
        end = len(text) - self._partial_stop(text)
        self._pending = text[end:]
        return text[:end]

    def rest(self) -> str:
        """The text held back, once the model has ended."""
        pending, self._pending = self._pending, ""
        return pending

    def _partial_stop(self, text: str) -> int:
        """The length of the longest end of the text that a stop begins with."""
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        for length in range(longest, 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0


class Generation:
    """Reads the responses; after the last it knows why the text ended and how many tokens it took.

    Tokens are those that the model counted, None if it does not count: we never return a guess.
    """

    def __init__(
        self, binding: Binding, request: GenerationRequest, admission: Admission | None
    ) -> None:
        self._binding, self._admission = binding, admission
        self._max_tokens = request.sampling.get("max_tokens")
        self._stops = StopFilter(request.sampling.get("stop", ()))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._responses = 0
        self._last_reason = ""
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None

    def feed(self, response: service_pb2.ModelInferResponse) -> str:
        """The text that can be sent now; raises UpstreamError when the model gave up."""
        text = self._stops.feed(self._read(response))
        if self._admission and self.prompt_tokens is not None:
            # With every response: a client that leaves pays for what it got.
            self._admission.settle(self.prompt_tokens + (self.completion_tokens or 0))
        return text

    def rest(self) -> str:
        """The text held back, once the model has ended."""
        return self._stops.feed(self._decoder.decode(b"", final=True)) + self._stops.rest()

    @property
    def has_stopped(self) -> bool:
        """Whether a stop text came: the model's text after it is dropped."""
        return self._stops.stopped

    @property
    def finish_reason(self) -> str:
        if self.has_stopped:
            return "stop"
        if self._last_reason in FINISH_REASONS:
            return self._last_reason
        # The model gives no reason. Without its count: a response has at least one token.
        used = self._responses if self.completion_tokens is None else self.completion_tokens
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

    def _read(self, response: service_pb2.ModelInferResponse) -> str:
        """The response's text; keeps its finish reason and token counts."""
        self._responses += 1
        binding, raw_text = self._binding, b""
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            if output.name == binding.text:
                raw_text = b"".join(unpack("BYTES", [-1], raw))
            elif output.name == binding.finish_reason:
                self._last_reason = b"".join(unpack("BYTES", [-1], raw)).decode("utf-8", "replace")
            elif output.name == binding.input_tokens:
                self.prompt_tokens = _sum(output, raw)
            elif output.name == binding.output_tokens:
                self.completion_tokens = (self.completion_tokens or 0) + _sum(output, raw)
        if self._last_reason not in FINISH_REASONS | _UNFINISHED:
            log_upstream(grpc.StatusCode.UNKNOWN, f"finish_reason {self._last_reason!r}")
            raise UpstreamError("the model gave up in the middle of its response: try again")
        return self._decoder.decode(raw_text)


def _sum(output: Any, raw: bytes) -> int:
    return int(unpack(output.datatype, [-1], raw).sum())
