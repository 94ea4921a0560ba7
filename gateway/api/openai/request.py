"""Reads text requests: the conversation, checked and rendered for the model, or the prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.api.openai.generation import GenerationRequest
from gateway.api.openai.sampling import flag, present, read, refuse_others, wants_usage
from gateway.api.openai.token_arrays import are_tokens, refusal
from gateway.api.openai.token_inputs import as_text
from gateway.errors import SHOWN, InvalidRequest, quoted
from gateway.models.chat_template import render
from gateway.models.text_binding import Binding

# ``developer`` is OpenAI's newer name for what every chat template calls system.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def read_chat(body: Mapping[str, Any], binding: Binding) -> GenerationRequest:
    """Raises InvalidRequest, naming the field that is wrong or not supported."""
    refuse_others(body, {"messages"}, binding)
    messages = _conversation(body.get("messages"), binding.forbidden)
    if binding.messages:
        source, text = binding.messages, orjson.dumps(messages).decode()
    else:
        source = binding.prompt
        text = render(binding.template, messages, binding.variables or {})
    return GenerationRequest(
        source, [text], read(body, binding), flag(body, "stream"), wants_usage(body)
    )


def _conversation(messages: Any, forbidden: Sequence[str]) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("'messages' must be a list of at least one message", param="messages")
    return [
        _message(message, f"messages.{index}", forbidden) for index, message in enumerate(messages)
    ]


def _message(message: Any, where: str, forbidden: Sequence[str]) -> dict[str, str]:
    # A response that a client sends back as a message has empty fields.
    fields = {k: v for k, v in present(message, "content").items() if v not in ([], "")}
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
            raise InvalidRequest(
                f"{where} contains {marker!r}, which would forge a turn: leave it out", param=where
            )
    checked = {"role": _ROLES[role], "content": content}
    return checked | ({"name": name} if name else {})


def _text(content: Any, where: str) -> str:
    """The text of a content: a string, or a list of parts that are all text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of parts", param=where)
    return "".join(_part(part, f"{where}.{index}") for index, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    part_type = part.get("type") if isinstance(part, dict) else None
    if part_type != "text":
        raise InvalidRequest(
            f"{where}: parts of type {quoted(part_type)} are not supported: send text", param=where
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"{where}.text must be a string", param=f"{where}.text")
    return text


def read_completion(body: Mapping[str, Any], binding: Binding) -> GenerationRequest:
    """Raises InvalidRequest, naming the field that is wrong or not supported."""
    refuse_others(body, {"prompt", "echo"}, binding)
    source, values = _prompt(body.get("prompt"), binding)
    prefix = ""
    if flag(body, "echo"):
        if source == binding.tokens:
            raise InvalidRequest("'echo' needs a text prompt: send one", param="echo")
        prefix = values[0]
    sampling = read(body, binding)
    return GenerationRequest(
        source, values, sampling, flag(body, "stream"), wants_usage(body), prefix
    )


async def with_text(body: Mapping[str, Any], binding: Binding) -> Mapping[str, Any]:
    """The body with a prompt of OpenAI's token ids decoded to text."""
    if binding.tokens or "prompt" not in body:
        return body
    vocabulary = {"vocabulary": binding.vocabulary}
    return {**body, "prompt": await as_text(body["prompt"], vocabulary, "prompt")}


def _prompt(value: Any, binding: Binding) -> tuple[str, list[Any]]:
    """The name of the input that takes the prompt, and its elements."""
    if isinstance(value, list) and len(value) == 1 and not are_tokens(value):
        value = value[0]
    if isinstance(value, str):
        return binding.prompt, [value]
    if are_tokens(value):
        if not binding.tokens:
            raise refusal("prompt")
        return binding.tokens, value
    raise InvalidRequest("'prompt' must be one text: send one request per text", param="prompt")
