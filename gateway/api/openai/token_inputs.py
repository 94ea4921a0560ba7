"""OpenAI inputs that may be text or token ids.

Ids belong to a vocabulary. A stock client's belong to one of OpenAI's, which no model here has:
read as the model's own they would silently mean another text. So they are decoded to text by the
endpoint schema's ``vocabulary`` (with "" they are refused), unless the endpoint schema says that
the model takes ids (``tokens_in``): then they are taken for its own.
"""

from collections.abc import Mapping
from typing import Any

from gateway.api.openai.token_arrays import are_tokens, refusal
from gateway.errors import InvalidRequest
from gateway.models.compiled_endpoint import VOCABULARY, Row

MAX_INPUTS = 2048  # OpenAI's own limit


async def as_text(value: Any, binding: Mapping[str, Any], param: str) -> Any:
    """``value`` with OpenAI's ids decoded to text, unless the model itself takes ids."""
    has_ids = are_tokens(value) or (isinstance(value, list) and any(map(are_tokens, value)))
    if not has_ids or "tokens_in" in binding:
        return value
    vocabulary = binding.get("vocabulary", VOCABULARY)
    if not vocabulary:
        raise refusal(param)
    from gateway.api.openai.token_ids import decoded

    return await decoded(value, vocabulary, param)


def embedding_rows(value: Any, binding: Mapping[str, Any]) -> list[Row]:
    """Rows of the endpoint schema for one input or a list of inputs; raises InvalidRequest for
    anything else."""
    if not isinstance(value, list) or are_tokens(value):
        return [_row(value, binding, "input")]
    if not 1 <= len(value) <= MAX_INPUTS:
        raise InvalidRequest(f"'input' must be a text or 1 to {MAX_INPUTS} texts", param="input")
    return [_row(item, binding, f"input.{index}") for index, item in enumerate(value)]


def _row(value: Any, binding: Mapping[str, Any], param: str) -> Row:
    if isinstance(value, str):
        return {binding["text"]: value}
    if not are_tokens(value):
        raise InvalidRequest("'input' must be a text or a list of texts", param=param)
    if "tokens_in" not in binding:
        raise refusal(param)
    return {binding["tokens_in"]: value}
