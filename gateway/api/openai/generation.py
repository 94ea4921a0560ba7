"""Generating texts, by the contract of Triton's vLLM backend: requests and responses."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
import orjson
from tritonclient.grpc import service_pb2

from gateway.api.openai.logprobs import LogprobReader, TokenLogprob
from gateway.api.openai.output_parsers import (
    Delta,
    Parser,
    Plain,
    ReasoningSplit,
    StopFilter,
    following,
)
from gateway.api.openai.sampling import seed_of_copy
from gateway.api.openai.tools import Tools
from gateway.errors import UpstreamError
from gateway.limits.limiter import Admission
from gateway.models.catalogue import Model
from gateway.models.rows import tensor_of
from gateway.models.tensors import check_model, message_of, unpack
from gateway.models.text_binding import Binding
from gateway.upstream.triton_errors import log_upstream

FINISH_REASONS = frozenset({"stop", "length", "content_filter"})
_LAST_TEXT = 256  # characters: no token is longer
_UNFINISHED = frozenset({"", "None"})  # vLLM's backend while the text goes on


class Prompt(NamedTuple):
    """The input to fill, its elements, and what is returned before the model's text (``echo``)."""

    source: str
    values: Sequence[Any]
    echo: str = ""


@dataclass(frozen=True)
class GenerationRequest:
    """``n`` texts for each prompt. Each is a request of its own to the model, which batches them:
    so a model needs no ``n``, and a slow reader of one holds up none of the others in Triton."""

    prompts: Sequence[Prompt]
    sampling: dict[str, Any]
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    top_logprobs: int | None = None  # None: no log-probabilities
    tools: Tools | None = None
    keeps_reasoning: bool = False  # in the text: completions continue a text, and split nothing

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.n

    def messages(self, model: Model, binding: Binding) -> list[service_pb2.ModelInferRequest]:
        """Triton's requests, one a choice, in order; raises InvalidRequest when the values do not
        fit the model's inputs."""
        return list(self._messages(model, binding))

    def _messages(self, model: Model, binding: Binding) -> Iterator[service_pb2.ModelInferRequest]:
        parameters = {
            name: value
            for name, value in self.sampling.items()
            if name != "stop" or name in binding.takes
        }
        flags = [
            tensor_of(model, name, [value])
            for name, value in binding.set_flags(
                model.inputs, self.top_logprobs is not None
            ).items()
        ]
        for prompt in self.prompts:
            for copy in range(self.n):
                tensors = [tensor_of(model, prompt.source, prompt.values)]
                if binding.takes:
                    if self.n > 1 and "seed" in parameters:
                        # or all texts were the same
                        seed = seed_of_copy(self.sampling["seed"], copy)
                        parameters = {**parameters, "seed": seed}
                    tensors.append(tensor_of(model, binding.sampling, [orjson.dumps(parameters)]))
                tensors += flags
                check_model(model, tensors)
                yield message_of(model.name, tensors)


class TokenCounts:
    """The tokens of all texts of a request, as the model counts them; reported to its admission as
    the responses arrive, so that a client that leaves pays for what it got.

    None for what the model does not count: we never return a guess.
    """

    def __init__(self, choices: int = 1, n: int = 1, admission: Admission | None = None) -> None:
        self._n, self._admission = n, admission
        self.prompt: list[int | None] = [None] * choices
        self.completion: list[int | None] = [None] * choices
        self.cached: list[int | None] = [None] * choices

    def settle(self) -> None:
        if self._admission is None:
            return
        if len(self.prompt) == 1:  # for every piece: mostly there is one choice
            if self.prompt[0] is not None:
                self._admission.settle(self.prompt[0] + (self.completion[0] or 0))
        elif any(count is not None for count in self.prompt):
            self._admission.settle(sum(self._per_prompt(self.prompt)) + self._generated)

    @property
    def input_tokens(self) -> int | None:
        known = any(count is not None for count in self.prompt)
        return sum(self._per_prompt(self.prompt)) if known else None

    @property
    def output_tokens(self) -> int | None:
        """So far."""
        known = any(count is not None for count in self.completion)
        return self._generated if known else None

    @property
    def usage(self) -> dict[str, Any] | None:
        """A prompt counts once, however many texts continue it."""
        if None in self.prompt or None in self.completion:
            return None
        prompt, generated = sum(self._per_prompt(self.prompt)), self._generated
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
        }
        if None not in self.cached:
            cached = sum(self._per_prompt(self.cached))
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        return usage

    @property
    def _generated(self) -> int:
        return sum(count or 0 for count in self.completion)

    def _per_prompt(self, counts: Sequence[int | None]) -> list[int]:
        starts = range(0, len(counts), self._n)
        return [max(count or 0 for count in counts[at : at + self._n]) for at in starts]


class Piece(NamedTuple):
    """What arrived of a choice; ``finish_reason`` with its last piece."""

    choice: int
    delta: Delta
    logprobs: Sequence[TokenLogprob] = ()
    finish_reason: str = ""


class Generation:
    """Reads the responses of one choice; after the last it knows why the text ended."""

    def __init__(
        self,
        binding: Binding,
        request: GenerationRequest,
        counts: TokenCounts | None = None,
        choice: int = 0,
    ) -> None:
        self._binding, self._counts, self._choice = binding, counts or TokenCounts(), choice
        self._max_tokens = request.sampling.get("max_tokens")
        self._stops = StopFilter(request.sampling.get("stop", ()))
        self._parser = _parser(request, binding)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._logprobs = (
            None if request.top_logprobs is None else LogprobReader(request.top_logprobs)
        )
        self._tokens: list[TokenLogprob] = []  # whose text may yet be cut off by a stop
        self._token_end = self._passed = 0  # characters of tokens, and of text, that were sent
        self._responses = 0
        self._last_text = ""  # of the model, to tell a token of it from one that ended it
        self._last_reason = ""
        self._has_calls = False

    def feed(self, response: service_pb2.ModelInferResponse) -> Piece:
        """What can be sent now; raises UpstreamError when the model gave up."""
        text = self._stops.feed(self._read(response))
        self._counts.settle()
        return self._piece(text, self._parser.feed(text) if text else Delta())

    def end(self) -> Piece:
        """What was held back, once the model has ended or a stop text came."""
        text = ""
        if not self.has_stopped:
            last = self._decoder.decode(b"", final=True)
            if self._logprobs:
                self._tokens += self._logprobs.end()
            text = self._stops.feed(last) + self._stops.rest()
        piece = self._piece(text, following(self._parser.feed(text), self._parser.end()))
        if not self.has_stopped:
            piece = piece._replace(logprobs=[*piece.logprobs, *self._tokens_of_text()])
        return piece._replace(finish_reason=self.finish_reason)

    def _tokens_of_text(self) -> list[TokenLogprob]:
        """The last tokens, without those that only ended the text and are no part of it."""
        tokens = self._tokens
        while (
            tokens
            and self._last_reason == "stop"
            and tokens[-1].characters
            and not self._last_text.endswith(tokens[-1].token)
        ):
            tokens = tokens[:-1]
        return tokens

    @property
    def has_stopped(self) -> bool:
        """Whether a stop text came, or a call that is to be the only one: the model's text after
        it is dropped."""
        return self._stops.stopped or self._parser.has_ended

    @property
    def finish_reason(self) -> str:
        reason = self._reason
        return "tool_calls" if reason == "stop" and self._has_calls else reason

    @property
    def _reason(self) -> str:
        if self.has_stopped:
            return "stop"
        if self._last_reason in FINISH_REASONS:
            return self._last_reason
        # The model gives no reason. Without its count: a response has at least one token.
        counted = self._counts.completion[self._choice]
        used = self._responses if counted is None else counted
        return "length" if self._max_tokens and used >= self._max_tokens else "stop"

    def _piece(self, text: str, delta: Delta) -> Piece:
        self._passed += len(text)
        if delta.calls:
            self._has_calls = True
        if not self._tokens:
            return Piece(self._choice, delta)
        sent = 0
        for token in self._tokens:
            if self._token_end >= self._passed and (token.characters or not token.data):
                break
            self._token_end += token.characters
            sent += 1
        tokens, self._tokens = self._tokens[:sent], self._tokens[sent:]
        return Piece(self._choice, delta, tokens)

    def _read(self, response: service_pb2.ModelInferResponse) -> str:
        """The response's text; keeps its finish reason, token counts and log-probabilities."""
        self._responses += 1
        binding, counts, choice, raw_text, raw_logprobs = (
            self._binding,
            self._counts,
            self._choice,
            b"",
            b"",
        )
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            name = output.name
            if name == binding.text:
                raw_text = _bytes(raw)
            elif name == binding.finish_reason:
                self._last_reason = _bytes(raw).decode("utf-8", "replace")
            elif name == binding.input_tokens:
                counts.prompt[choice] = _sum(output, raw)
            elif name == binding.output_tokens:
                counts.completion[choice] = (counts.completion[choice] or 0) + _sum(output, raw)
            elif name == binding.cached_tokens:
                counts.cached[choice] = _sum(output, raw)
            elif name == binding.logprobs:
                raw_logprobs = _bytes(raw)
        if self._last_reason not in FINISH_REASONS and self._last_reason not in _UNFINISHED:
            log_upstream(grpc.StatusCode.UNKNOWN, f"finish_reason {self._last_reason!r}")
            raise UpstreamError("the model gave up in the middle of its response: try again")
        text = self._decoder.decode(raw_text)
        if self._logprobs:
            self._last_text = (self._last_text + text)[-_LAST_TEXT:]
            try:
                self._tokens += self._logprobs.feed(raw_logprobs, text)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                log_upstream(grpc.StatusCode.UNKNOWN, f"logprobs: {error!r}")
                raise UpstreamError(
                    "the model returned log-probabilities that cannot be read: leave them out"
                ) from error
        return text


def _parser(request: GenerationRequest, binding: Binding) -> Parser:
    """How a text of this request becomes an answer."""
    tools, tags = request.tools, binding.reasoning
    parser = tools.parser() if tools else Plain()
    if tags is None or request.keeps_reasoning or (tools and tools.choice != "auto"):
        return parser
    return ReasoningSplit(tags.start, tags.end, tags.is_open, parser)


def _bytes(raw: bytes) -> bytes:
    """The elements of a BYTES tensor, joined: mostly there is one."""
    length = int.from_bytes(raw[:4], "little")
    if len(raw) == length + 4:
        return raw[4:]
    return b"".join(unpack("BYTES", [-1], raw))


def _sum(output: Any, raw: bytes) -> int:
    if output.datatype == "UINT32" and len(raw) == 4:
        return int.from_bytes(raw, "little")
    return int(unpack(output.datatype, [-1], raw).sum())
