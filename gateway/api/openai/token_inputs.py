"""OpenAI inputs that may be text or token ids.

Ids are of a vocabulary. A stock client's are of OpenAI's, which no model here has: read as if they
were the model's own they would silently mean another text. So they are turned back into the text
(``vocabulary`` of the endpoint schema says by which; "": they are refused), unless the endpoint
schema says that the model takes ids (``tokens_in``): then they are taken for its own.
"""

from collections.abc import Mapping
from typing import Any

from gateway.errors import InvalidRequest
from gateway.models.endpoint_schema import VOCABULARY, Row

MAX_INPUTS = 2048  # OpenAI's own limit


def are_tokens(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and set(map(type, given)) == {int}


def refusal(param: str, why: str = "OpenAI's ids mean nothing to this model") -> InvalidRequest:
    return InvalidRequest(
        f"{param!r}: token arrays are not supported, {why}: "
        "send text (with LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
        param=param,
    )


async def as_text(given: Any, binding: Mapping[str, Any], param: str) -> Any:
    """``given`` with text in the place of OpenAI's ids, if the model does not take ids itself."""
    has_ids = are_tokens(given) or (isinstance(given, list) and any(map(are_tokens, given)))
    if not has_ids or "tokens_in" in binding:
        return given
    vocabulary = binding.get("vocabulary", VOCABULARY)
    if not vocabulary:
        raise refusal(param)
    from gateway.api.openai.token_ids import decoded

    return await decoded(given, vocabulary, param)


def embedding_rows(given: Any, binding: Mapping[str, Any]) -> list[Row]:
    """Rows of the endpoint schema for one input or a list of them; InvalidRequest for what is
    neither."""
    inputs = given if isinstance(given, list) and not are_tokens(given) else [given]
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise InvalidRequest(f"'input' must be a text or 1 to {MAX_INPUTS} texts", param="input")
    shared_slots = (
        f"input.{place}" if inputs is given else "input" for place in range(len(inputs))
    )
    return [_row(each, binding, place) for each, place in zip(inputs, shared_slots, strict=True)]


def _row(given: Any, binding: Mapping[str, Any], place: str) -> Row:
    if isinstance(given, str):
        return {binding["text"]: given}
    if not are_tokens(given):
        raise InvalidRequest("'input' must be a text or a list of texts", param=place)
    if "tokens_in" not in binding:
        raise refusal(place)
    return {binding["tokens_in"]: given}
