"""How a pipeline serves OpenAI's text routes: the tensors that its endpoint schema binds to them.

An endpoint schema with no more than ``"openai": {"chat": {}}`` stands for the contract of Triton's
vLLM backend under that backend's own names (docs/openai.md has every key).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from gateway.models.chat_template import CHATML, MARKERS, TOOLS_PROMPT, compiled
from gateway.models.compiled_endpoint import VOCABULARY
from modelspec.errors import DeclarationError

Tensors = Mapping[str, Any]  # by name, as ``gateway.models.catalogue`` has them
ROUTES = ("chat", "completions")
# BOOL inputs that are set if the model has them: stream the output, leave the prompt out of it, and
# report what OpenAI's clients expect at the end.
_STREAMED = ("stream", "exclude_input_in_output", "return_finish_reason")
_COUNTED = ("return_num_input_tokens", "return_num_output_tokens", "return_num_cached_tokens")
FLAGS = dict.fromkeys((*_STREAMED, *_COUNTED), True)
RETURN_LOGPROBS = "return_logprobs"  # set for requests that ask for them
STRUCTURED_OUTPUTS = "structured_outputs"  # the sampling parameter that holds a grammar
_PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "logit_bias")
_ENDS = ("max_tokens", "min_tokens", "stop", "ignore_eos")
TAKES = frozenset((*_SAMPLING, *_PENALTIES, *_ENDS, STRUCTURED_OUTPUTS))
PARSERS = ("hermes",)


@dataclass(frozen=True)
class ToolBinding:
    """How tools are described to the model, and how it calls them."""

    parser: str = "hermes"  # <tool_call>{"name": ..., "arguments": {...}}</tool_call>
    prompt: str = TOOLS_PROMPT  # a system text (Jinja2) for a chat template that takes no ``tools``


@dataclass(frozen=True)
class ReasoningBinding:
    """The tags around the text that precedes the answer."""

    start: str = "<think>"
    end: str = "</think>"
    is_open: bool = False  # the chat template itself writes ``start``


@dataclass(frozen=True)
class TokenizeBinding:
    """The tensors through which an engine says its tokens, both JSON (docs/openai.md)."""

    request: str = "tokenizer_request"
    text: str = "text_output"

    @classmethod
    def compile(
        cls, raw: Mapping[str, Any], inputs: Tensors, outputs: Tensors
    ) -> "TokenizeBinding":
        """The binding. Raises DeclarationError."""
        binding = _part("tokenize", cls, dict(raw))
        for name, tensors in ((binding.request, inputs), (binding.text, outputs)):
            _check_text(name, tensors)
        return binding


_P = TypeVar("_P", ToolBinding, ReasoningBinding, TokenizeBinding)


@dataclass(frozen=True)
class Binding:
    """The keys that an endpoint schema may have for one of these routes; '' is a tensor that is
    not used."""

    prompt: str = "text_input"  # the text to continue
    messages: str = ""  # instead of ``prompt``: the conversation as JSON
    tokens: str = ""  # instead of ``prompt``, if sent: token ids of the model's own vocabulary
    cancel: str = ""  # takes the id of a request to give up; '': Triton is told, when that is safe
    vocabulary: str = VOCABULARY  # of other token ids, which are decoded to text; '': refused
    sampling: str = "sampling_parameters"  # JSON of the parameters in ``takes``
    text: str = "text_output"
    finish_reason: str = "finish_reason"
    input_tokens: str = "num_input_tokens"
    output_tokens: str = "num_output_tokens"
    cached_tokens: str = "num_cached_tokens"  # those of the prompt that the engine had computed
    logprobs: str = "logprobs"
    flags: Mapping[str, bool] | None = None
    takes: frozenset[str] = TAKES  # any other parameter of a request is refused
    max_tokens: int = 4096  # the most that a request may ask for
    default_max_tokens: int = 1024  # for a request that does not ask
    max_choices: int = 16  # the most texts (prompts times ``n``) that a request may ask for
    max_logprobs: int = 20  # the most alternatives to a token whose log-probability it gives
    schema_keywords: frozenset[str] | None = None  # of JSON Schema; None: all that we know
    stop: tuple[str, ...] = ()  # always, in addition to the request's own
    template: str = CHATML  # Jinja2, as in Hugging Face's chat templates
    variables: Mapping[str, str] | None = None  # for the template, such as bos_token
    markers: tuple[str, ...] | None = None  # forbidden in messages: they would forge a turn
    tools: ToolBinding | None = None  # None: requests with tools are refused
    reasoning: ReasoningBinding | None = None  # None: the whole text is the answer

    @classmethod
    def compile(cls, raw: Mapping[str, Any], inputs: Tensors, outputs: Tensors) -> "Binding":
        """The binding. Raises DeclarationError, which names the key that is wrong."""
        unknown = sorted(set(raw) - {field.name for field in fields(cls)})
        if unknown:
            raise DeclarationError(
                f"has an endpoint schema whose openai binding has no key {unknown[0]!r}"
            )
        values = dict(raw)
        collections = {"takes": frozenset, "schema_keywords": frozenset, "stop": tuple}
        for key, collection in {**collections, "markers": tuple}.items():
            if key in values:
                values[key] = collection(values[key])
        if "tools" in values:
            values["tools"] = _part("tools", ToolBinding, values["tools"])
        if "reasoning" in values:
            values["reasoning"] = _part("reasoning", ReasoningBinding, values["reasoning"])
        if "template" in raw:
            values.setdefault("markers", ())
        if values.get("sampling", cls.sampling) not in inputs:
            values["takes"] = frozenset()
            values["logprobs"] = ""
        if RETURN_LOGPROBS not in inputs or values.get("logprobs", cls.logprobs) not in outputs:
            values["logprobs"] = ""
        binding = cls(**values)
        binding._check(inputs, outputs)
        return binding

    def _check(self, inputs: Tensors, outputs: Tensors) -> None:
        source = self.messages or self.prompt
        for name, tensors in ((source, inputs), (self.text, outputs)):
            _check_text(name, tensors)
        if self.cancel:
            _check_text(self.cancel, inputs)
        for name in (self.tokens, *(self.flags or ())):
            if name and name not in inputs:
                raise DeclarationError(
                    f"has an endpoint schema whose openai binding names {name!r}: there is "
                    "no such input"
                )
        for name in ("max_tokens", "default_max_tokens", "max_choices"):
            limit = getattr(self, name)
            if type(limit) is not int or limit < 1:
                raise DeclarationError(
                    f"has an endpoint schema whose openai binding is wrong: {name} must be "
                    "an integer above 0"
                )
        if type(self.max_logprobs) is not int or self.max_logprobs < 0:
            raise DeclarationError(
                "has an endpoint schema whose openai binding is wrong: max_logprobs must be an "
                "integer of at least 0"
            )
        compiled(self.template)
        if self.reasoning and not (self.reasoning.start and self.reasoning.end):
            raise DeclarationError(
                "has an endpoint schema whose openai binding is wrong: reasoning needs two tags"
            )
        if not self.tools:
            return
        compiled(self.tools.prompt)
        if self.tools.parser not in PARSERS or self.messages:
            raise DeclarationError(
                "has an endpoint schema whose openai binding is wrong: tools need a prompt and "
                f"a parser, one of {', '.join(PARSERS)}"
            )

    def set_flags(self, inputs: Tensors, logprobs: bool = False) -> Mapping[str, bool]:
        flags = dict(FLAGS if self.flags is None else self.flags)
        if logprobs:
            flags[RETURN_LOGPROBS] = True
        return {name: value for name, value in flags.items() if name in inputs}

    @property
    def forbidden(self) -> tuple[str, ...]:
        return MARKERS if self.markers is None else self.markers


def _part(key: str, part: type[_P], raw: Any) -> _P:
    """The dataclass ``part`` of a key's object."""
    if not isinstance(raw, dict):
        raise DeclarationError(
            f"has an endpoint schema whose openai binding is wrong: {key} must be an object"
        )
    types = {field.name: field.type for field in fields(part)}
    for name, value in raw.items():
        if name not in types or type(value) is not types[name]:
            raise DeclarationError(
                f"has an endpoint schema whose openai binding is wrong: {key} has no key {name!r} "
                "of this type"
            )
    return part(**raw)


def check(routes: Mapping[str, Any], inputs: Tensors, outputs: Tensors) -> None:
    """Raises DeclarationError unless the endpoint schema's bindings for all of these routes
    are valid."""
    for route in ROUTES:
        if route in routes:
            Binding.compile(routes[route], inputs, outputs)
    if "tokenize" in routes:
        TokenizeBinding.compile(routes["tokenize"], inputs, outputs)


def _check_text(name: str, tensors: Tensors) -> None:
    if name not in tensors or tensors[name].dtype != "BYTES":
        raise DeclarationError(
            f"has an endpoint schema whose openai binding needs a BYTES tensor {name!r}: there is "
            "none"
        )
