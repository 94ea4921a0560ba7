"""A completions request: one prompt, as text, or as token ids (of the model's own vocabulary if it
takes ids, else of OpenAI's)."""

from collections.abc import Mapping
from typing import Any

from gateway.addons.openai_text.binding import Binding
from gateway.addons.openai_text.generation import Ask
from gateway.addons.openai_text.sampling import flag, read, refuse_others, wants_usage
from gateway.doors.token_inputs import are_tokens, as_text, refusal
from gateway.errors import Malformed


def read_completion(body: Mapping[str, Any], binding: Binding) -> Ask:
    """Malformed names the field that is wrong, or is not served."""
    refuse_others(body, {"prompt", "echo"}, binding)
    source, values = _prompt(body.get("prompt"), binding)
    prefix = ""
    if flag(body, "echo"):
        if source == binding.tokens:
            raise Malformed("'echo' needs a prompt of text: send one", param="echo")
        prefix = values[0]
    sampling = read(body, binding)
    return Ask(source, values, sampling, flag(body, "stream"), wants_usage(body), prefix)


async def with_text(body: Mapping[str, Any], binding: Binding) -> Mapping[str, Any]:
    """The body with a prompt of text, where it was OpenAI's ids."""
    if binding.tokens or "prompt" not in body:
        return body
    vocabulary = {"vocabulary": binding.vocabulary}
    return {**body, "prompt": await as_text(body["prompt"], vocabulary, "prompt")}


def _prompt(given: Any, binding: Binding) -> tuple[str, list[Any]]:
    """The input that it is for, and its elements."""
    if isinstance(given, list) and len(given) == 1 and not are_tokens(given):
        given = given[0]
    if isinstance(given, str):
        return binding.prompt, [given]
    if are_tokens(given):
        if not binding.tokens:
            raise refusal("prompt")
        return binding.tokens, given
    raise Malformed("'prompt' must be one text: send a request for each", param="prompt")
