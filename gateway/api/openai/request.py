"""A request: the conversation, checked and written as the model reads it, or the prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.api.openai.generation import Ask
from gateway.api.openai.sampling import flag, present, read, refuse_others, wants_usage
from gateway.api.openai.token_inputs import are_tokens, as_text, refusal
from gateway.errors import SHOWN, InvalidRequest, quoted
from gateway.models.chat_template import render
from gateway.models.text_binding import Binding

# OpenAI's newer name for what every template calls system.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def read_chat(body: Mapping[str, Any], binding: Binding) -> Ask:
    """InvalidRequest names the field that is wrong, or is not served."""
    refuse_others(body, {"messages"}, binding)
    messages = _conversation(body.get("messages"), binding.forbidden)
    if binding.messages:
        source, text = binding.messages, orjson.dumps(messages).decode()
    else:
        source = binding.prompt
        text = render(binding.template, messages, binding.variables or {})
    return Ask(source, [text], read(body, binding), flag(body, "stream"), wants_usage(body))


def _conversation(messages: Any, forbidden: Sequence[str]) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("'messages' must be a list of at least one message", param="messages")
    return [_message(each, f"messages.{place}", forbidden) for place, each in enumerate(messages)]


def _message(given: Any, where: str, forbidden: Sequence[str]) -> dict[str, str]:
    # What a client got as an answer and sends back has empty fields.
    fields = {k: v for k, v in present(given, "content").items() if v not in ([], "")}
    role = fields.pop("role", None)
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(
            f"{where}.role must be one of {', '.join(_ROLES)}", param=f"{where}.role"
        )
    name = fields.pop("name", "")
    content = _text(fields.pop("content", ""), f"{where}.content")
    if fields or not isinstance(name, str):
        field = next(iter(fields), "name")[:SHOWN]
        raise InvalidRequest(
            f"{where}.{field} is not supported: send text", param=f"{where}.{field}"
        )
    for marker in forbidden:
        if marker in content or marker in name:
            raise InvalidRequest(f"{where} has {marker!r}, which would forge a turn", param=where)
    message = {"role": _ROLES[role], "content": content}
    return message | ({"name": name} if name else {})


def _text(content: Any, where: str) -> str:
    """A text, or a list of parts that are all text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a text or a list of parts", param=where)
    return "".join(_part(part, f"{where}.{place}") for place, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise InvalidRequest(
            f"{where}: parts of type {quoted(kind)} are not supported: send text", param=where
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"{where}.text must be a text", param=f"{where}.text")
    return text


def read_completion(body: Mapping[str, Any], binding: Binding) -> Ask:
    """InvalidRequest names the field that is wrong, or is not served."""
    refuse_others(body, {"prompt", "echo"}, binding)
    source, values = _prompt(body.get("prompt"), binding)
    prefix = ""
    if flag(body, "echo"):
        if source == binding.tokens:
            raise InvalidRequest("'echo' needs a prompt of text: send one", param="echo")
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
    raise InvalidRequest("'prompt' must be one text: send a request for each", param="prompt")
