"""How a pipeline serves OpenAI's text routes: the tensors that its endpoint schema binds to them.

An endpoint schema with no more than ``"openai": {"chat": {}}`` stands for the contract of Triton's
vLLM backend under that backend's own names (docs/openai.md has every key).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from gateway.models.chat_template import CHATML, MARKERS, compiled
from gateway.models.compiled_endpoint import VOCABULARY
from modelspec.errors import DeclarationError

Tensors = Mapping[str, Any]  # by name, as ``gateway.models.catalogue`` has them
ROUTES = ("chat", "completions")
# BOOL inputs that are set if the model has them: stream the output, leave the prompt out of it, and
# report what OpenAI's clients expect at the end.
_STREAMED = ("stream", "exclude_input_in_output", "return_finish_reason")
_COUNTED = ("return_num_input_tokens", "return_num_output_tokens")
FLAGS = dict.fromkeys((*_STREAMED, *_COUNTED), True)
_PENALTIES = ("presence_penalty", "frequency_penalty")
TAKES = frozenset(("temperature", "top_p", "max_tokens", "stop", "seed", *_PENALTIES))


@dataclass(frozen=True)
class Binding:
    """The keys that an endpoint schema may have for one of these routes; '' is a tensor that is
    not used."""

    prompt: str = "text_input"  # the text to continue
    messages: str = ""  # instead of ``prompt``: the conversation as JSON
    tokens: str = ""  # instead of ``prompt``, if sent: token ids of the model's own vocabulary
    vocabulary: str = VOCABULARY  # of other token ids, which are decoded to text; '': refused
    sampling: str = "sampling_parameters"  # JSON of the parameters in ``takes``
    text: str = "text_output"
    finish_reason: str = "finish_reason"
    input_tokens: str = "num_input_tokens"
    output_tokens: str = "num_output_tokens"
    flags: Mapping[str, bool] | None = None
    takes: frozenset[str] = TAKES  # any other parameter of a request is refused
    max_tokens: int = 4096  # the most that a request may ask for
    default_max_tokens: int = 1024  # for a request that does not ask
    stop: tuple[str, ...] = ()  # always, in addition to the request's own
    template: str = CHATML  # Jinja2, as in Hugging Face's chat templates
    variables: Mapping[str, str] | None = None  # for the template, such as bos_token
    markers: tuple[str, ...] | None = None  # forbidden in messages: they would forge a turn

    @classmethod
    def compile(cls, raw: Mapping[str, Any], inputs: Tensors, outputs: Tensors) -> "Binding":
        """The binding. Raises DeclarationError, which names the key that is wrong."""
        unknown = sorted(set(raw) - {field.name for field in fields(cls)})
        if unknown:
            raise DeclarationError(
                f"has an endpoint schema whose openai binding has no key {unknown[0]!r}"
            )
        values = dict(raw)
        for key, collection in (("takes", frozenset), ("stop", tuple), ("markers", tuple)):
            if key in values:
                values[key] = collection(values[key])
        if "template" in raw:
            values.setdefault("markers", ())
        if values.get("sampling", cls.sampling) not in inputs:
            values["takes"] = frozenset()
        binding = cls(**values)
        binding._check(inputs, outputs)
        return binding

    def _check(self, inputs: Tensors, outputs: Tensors) -> None:
        source = self.messages or self.prompt
        for name, tensors in ((source, inputs), (self.text, outputs)):
            _check_text(name, tensors)
        for name in (self.tokens, *(self.flags or ())):
            if name and name not in inputs:
                raise DeclarationError(
                    f"has an endpoint schema whose openai binding names {name!r}: there is "
                    "no such input"
                )
        for limit in (self.max_tokens, self.default_max_tokens):
            if type(limit) is not int or limit < 1:
                raise DeclarationError(
                    "has an endpoint schema whose openai binding is wrong: max_tokens must be "
                    "an integer above 0"
                )
        compiled(self.template)

    def set_flags(self, inputs: Tensors) -> Mapping[str, bool]:
        flags = FLAGS if self.flags is None else self.flags
        return {name: value for name, value in flags.items() if name in inputs}

    @property
    def forbidden(self) -> tuple[str, ...]:
        return MARKERS if self.markers is None else self.markers


def check(routes: Mapping[str, Any], inputs: Tensors, outputs: Tensors) -> None:
    """Raises DeclarationError unless the endpoint schema's bindings for all of these routes
    are valid."""
    for route in ROUTES:
        if route in routes:
            Binding.compile(routes[route], inputs, outputs)


def _check_text(name: str, tensors: Tensors) -> None:
    if name not in tensors or tensors[name].dtype != "BYTES":
        raise DeclarationError(
            f"has an endpoint schema whose openai binding needs a BYTES tensor {name!r}: there is "
            "none"
        )
