"""What an array of token ids is, and how one is refused."""

from typing import Any

from gateway.errors import InvalidRequest


def are_tokens(value: Any) -> bool:
    """Whether the value is an array of token ids."""
    return isinstance(value, list) and bool(value) and set(map(type, value)) == {int}


def refusal(param: str, reason: str = "OpenAI's ids mean nothing to this model") -> InvalidRequest:
    return InvalidRequest(
        f"{param!r}: token arrays are not supported, {reason}: "
        "send text (with LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
        param=param,
    )
