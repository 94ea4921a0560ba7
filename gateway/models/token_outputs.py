"""Which of a model's outputs say what an answer cost."""

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

TOKENS = "token_count"


class TokenOutputs(NamedTuple):
    """The outputs that count; '' for one that there is not."""

    prompt: str = ""  # stands in every answer of a stream: the last one holds
    added: str = ""  # adds up over the answers

    @classmethod
    def of(cls, outputs: Container[str], endpoint_schema: Mapping[str, Any]) -> "TokenOutputs":
        """``endpoint_schema`` as it was declared, {} for none."""
        if TOKENS in outputs:
            return cls(added=TOKENS)
        routes = endpoint_schema.get("openai", {})
        for bound in (routes[each] for each in ("chat", "completions") if each in routes):
            names = (
                bound.get("input_tokens", "num_input_tokens"),
                bound.get("output_tokens", "num_output_tokens"),
            )
            return cls(*(name if name in outputs else "" for name in names))
        return cls()

    @property
    def names(self) -> list[str]:
        return [name for name in self if name]
