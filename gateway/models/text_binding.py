"""How a pipeline serves OpenAI's text routes: which tensor is what, as its endpoint schema says.

A endpoint schema that says no more than ``"openai": {"chat": {}}`` means the contract of Triton's
vLLM backend under that backend's own names (docs/openai.md has every key).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from gateway.models.chat_template import CHATML, MARKERS, compiled
from gateway.models.endpoint_schema import VOCABULARY, EndpointSchemaError

Tensors = Mapping[str, Any]  # by name, as ``gateway.models.catalogue`` has them
ROUTES = ("chat", "completions")
# BOOL inputs that are set where the model has them: pieces as they come, no prompt in the answer,
# and what OpenAI's clients are told at the end.
_STREAMED = ("stream", "exclude_input_in_output", "return_finish_reason")
_COUNTED = ("return_num_input_tokens", "return_num_output_tokens")
FLAGS = dict.fromkeys((*_STREAMED, *_COUNTED), True)
_PENALTIES = ("presence_penalty", "frequency_penalty")
TAKES = frozenset(("temperature", "top_p", "max_tokens", "stop", "seed", *_PENALTIES))


@dataclass(frozen=True)
class Binding:
    """The keys that an endpoint schema may have for one of these routes; '' is a tensor that is
    not used."""

    prompt: str = "text_input"  # the text to go on from
    messages: str = ""  # instead of ``prompt``: the conversation as JSON
    tokens: str = ""  # instead of ``prompt``, if sent: token ids of the model's own vocabulary
    vocabulary: str = VOCABULARY  # of other token ids, which are sent as text; '': refused
    sampling: str = "sampling_parameters"  # JSON of those in ``takes``
    text: str = "text_output"
    finish_reason: str = "finish_reason"
    input_tokens: str = "num_input_tokens"
    output_tokens: str = "num_output_tokens"
    flags: Mapping[str, bool] | None = None
    takes: frozenset[str] = TAKES  # what else a request says is refused
    max_tokens: int = 4096  # a request may ask for so many
    default_max_tokens: int = 1024  # and gets so many if it does not ask
    stop: tuple[str, ...] = ()  # always, beside the request's own
    template: str = CHATML  # Jinja2, as Hugging Face writes chat templates
    variables: Mapping[str, str] | None = None  # such as bos_token, for the template
    markers: tuple[str, ...] | None = None  # what no message may contain: it would forge a turn

    @classmethod
    def compile(cls, raw: Mapping[str, Any], inputs: Tensors, outputs: Tensors) -> "Binding":
        """The binding; EndpointSchemaError names the key that is wrong."""
        unknown = sorted(set(raw) - {field.name for field in fields(cls)})
        if unknown:
            raise EndpointSchemaError(
                f"the endpoint schema's openai binding has no key {unknown[0]!r}"
            )
        given = dict(raw)
        for key, kind in (("takes", frozenset), ("stop", tuple), ("markers", tuple)):
            if key in given:
                given[key] = kind(given[key])
        if "template" in raw:
            given.setdefault("markers", ())
        if given.get("sampling", cls.sampling) not in inputs:
            given["takes"] = frozenset()
        return cls(**given)._checked(inputs, outputs)

    def _checked(self, inputs: Tensors, outputs: Tensors) -> "Binding":
        source = self.messages or self.prompt
        for name, tensors in ((source, inputs), (self.text, outputs)):
            _check_text(name, tensors)
        for name in (self.tokens, *(self.flags or ())):
            if name and name not in inputs:
                raise EndpointSchemaError(
                    f"the endpoint schema's openai binding names {name!r}: there is no such input"
                )
        for limit in (self.max_tokens, self.default_max_tokens):
            if type(limit) is not int or limit < 1:
                raise EndpointSchemaError(
                    "the endpoint schema's openai binding: max_tokens must be an integer above 0"
                )
        compiled(self.template)
        return self

    def set_flags(self, inputs: Tensors) -> Mapping[str, bool]:
        wanted = FLAGS if self.flags is None else self.flags
        return {name: value for name, value in wanted.items() if name in inputs}

    @property
    def forbidden(self) -> tuple[str, ...]:
        return MARKERS if self.markers is None else self.markers


def check(raw: Mapping[str, Any], inputs: Tensors, outputs: Tensors) -> None:
    """EndpointSchemaError unless every binding of the endpoint schema's that is for these routes
    can be used."""
    for route in ROUTES:
        if route in raw.get("openai", {}):
            Binding.compile(raw["openai"][route], inputs, outputs)


def _check_text(name: str, tensors: Tensors) -> None:
    if name not in tensors or tensors[name].dtype != "BYTES":
        raise EndpointSchemaError(
            f"the endpoint schema's openai binding needs a BYTES tensor {name!r}: there is none"
        )
