"""Which of a model's outputs count the tokens of a response."""

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

TOKENS = "token_count"


class TokenOutputs(NamedTuple):
    """The outputs that count tokens; '' for one that the model does not have."""

    prompt: str = ""  # in every response of a stream: the last value counts
    added: str = ""  # summed over the responses

    @classmethod
    def of(cls, outputs: Container[str], routes: Mapping[str, Any]) -> "TokenOutputs":
        """``routes`` are the OpenAI routes that the endpoint schema binds."""
        if TOKENS in outputs:
            return cls(added=TOKENS)
        binding = next(
            (routes[route] for route in ("chat", "completions") if route in routes), None
        )
        if binding is None:
            return cls()
        prompt = binding.get("input_tokens", "num_input_tokens")
        added = binding.get("output_tokens", "num_output_tokens")
        return cls(prompt if prompt in outputs else "", added if added in outputs else "")

    @property
    def names(self) -> list[str]:
        return [name for name in self if name]
