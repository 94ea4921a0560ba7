"""Reads text requests: the conversation, checked and rendered for the model, or the prompt."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson

from gateway.api.openai.fields import flag, refuse_keys
from gateway.api.openai.generation import GenerationRequest, Prompt
from gateway.api.openai.sampling import (
    choices_of,
    grammar_of,
    read,
    refuse_others,
    refuse_top_logprobs,
    top_logprobs_of,
    wants_usage,
)
from gateway.api.openai.token_arrays import are_tokens, refusal
from gateway.api.openai.token_inputs import as_text
from gateway.api.openai.tools import Tools, read_tools, with_instructions
from gateway.errors import SHOWN, InvalidRequest, quoted
from gateway.models.chat_template import render, takes_tools
from gateway.models.text_binding import STRUCTURED_OUTPUTS, Binding

# ``developer`` is OpenAI's newer name for what every chat template calls system.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


_REASONING = ("reasoning", "reasoning_content")  # of an assistant's turn; both are in use
# Of a part: what is cached, and what was output with it once. They say nothing to the model.
_PART_NOTES = ("prompt_cache_breakpoint", "cache_control", "annotations", "logprobs")
_CHAT_FIELDS = frozenset(
    ("messages", "tools", "tool_choice", "parallel_tool_calls", "logprobs", "top_logprobs")
)


def read_chat(body: Mapping[str, Any], binding: Binding) -> GenerationRequest:
    """Raises InvalidRequest, naming the field that is wrong or not supported."""
    refuse_others(body, _CHAT_FIELDS, binding)
    tools = read_tools(body, binding)
    messages = conversation(body.get("messages"), binding)
    sampling = read(body, binding)
    constrain(sampling, grammar_of(body, binding), tools, "response_format")
    top = _chat_logprobs(body, binding)
    if top is not None:
        sampling["logprobs"] = top
    return GenerationRequest(
        [chat_prompt(messages, tools, binding)],
        sampling,
        flag(body, "stream"),
        wants_usage(body),
        choices_of(body, 1, binding),
        top,
        tools,
    )


def constrain(
    sampling: dict[str, Any], grammar: Mapping[str, Any] | None, tools: Tools | None, field: str
) -> None:
    """Put into ``sampling`` the grammar that the request's ``field`` asks for, or that of its
    tools; raises InvalidRequest if it asks for both."""
    if tools and grammar:
        raise InvalidRequest(
            f"'{field}' cannot be combined with 'tools': send one of them, or tool_choice: none",
            param=field,
        )
    if tools and tools.grammar:
        grammar = tools.grammar
    if grammar:
        sampling[STRUCTURED_OUTPUTS] = orjson.dumps(grammar).decode()


def _chat_logprobs(body: Mapping[str, Any], binding: Binding) -> int | None:
    if not flag(body, "logprobs"):
        refuse_top_logprobs(body, "'logprobs': true")
        return None
    field = "top_logprobs" if "top_logprobs" in body else "logprobs"
    return top_logprobs_of("chat", field, body.get("top_logprobs", 0), binding)


def chat_prompt(
    messages: Sequence[dict[str, Any]],
    tools: Tools | None,
    binding: Binding,
    opens_turn: bool = True,
) -> Prompt:
    """What the model receives of a conversation; unless it ``opens_turn``, without the beginning
    of the model's own turn."""
    if binding.messages:
        return Prompt(binding.messages, [orjson.dumps(messages).decode()])
    functions = tools.functions if tools and takes_tools(binding.template) else ()
    text = render(
        binding.template,
        with_instructions(messages, tools, binding),
        binding.variables or {},
        functions,
        opens_turn,
    )
    return Prompt(binding.prompt, [text])


def conversation(messages: Any, binding: Binding) -> list[dict[str, Any]]:
    """The messages, checked, as a chat template takes them. Raises InvalidRequest."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("'messages' must be a list of at least one message", param="messages")
    return [
        checked_message(message, f"messages.{index}", binding)
        for index, message in enumerate(messages)
    ]


def checked_message(message: Any, where: str, binding: Binding) -> dict[str, Any]:
    """The message that stands at ``where`` of the request, as a chat template takes it. Raises
    InvalidRequest."""
    if not isinstance(message, dict):
        raise InvalidRequest(
            f"{where} must be an object with 'role' and 'content'", param=where[:SHOWN]
        )
    # A response that a client sends back as a message has empty fields.
    fields = {k: v for k, v in message.items() if v not in (None, [], "")}
    role = fields.pop("role", None)
    roles = _ROLES | ({"tool": "tool"} if binding.tools else {})
    if not isinstance(role, str) or role not in roles:
        raise InvalidRequest(
            f"{where}.role must be one of {', '.join(roles)}", param=f"{where}.role"
        )
    checked: dict[str, Any] = {
        "role": roles[role],
        "content": text_of(fields.pop("content", ""), f"{where}.content"),
    }
    texts = [checked["content"]]
    names = ["name", *(("tool_call_id",) if role == "tool" else ())]
    names += _REASONING if role == "assistant" else ()
    for name in names:
        value = fields.pop(name, "")
        if not isinstance(value, str):
            raise InvalidRequest(f"{where}.{name} must be a string", param=f"{where}.{name}")
        if value:
            # Chat templates that show an earlier turn's reasoning know it by the older name.
            checked["reasoning_content" if name in _REASONING else name] = value
            texts.append(value)
    if role == "assistant" and binding.tools and "tool_calls" in fields:
        calls = fields.pop("tool_calls")
        checked["tool_calls"] = _calls(calls, f"{where}.tool_calls")
        texts.append(orjson.dumps(checked["tool_calls"]).decode())
    if fields:
        field = next(iter(fields))[:SHOWN]
        raise InvalidRequest(
            f"{where}.{field} is not supported: send text", param=f"{where}.{field}"
        )
    refuse_markers(texts, where, binding)
    return checked


def refuse_markers(texts: Sequence[str], where: str, binding: Binding) -> None:
    """Raises InvalidRequest if a text of the message at ``where`` would forge a turn."""
    for marker in binding.forbidden:
        if any(marker in text for text in texts):
            raise InvalidRequest(
                f"{where} contains {marker!r}, which would forge a turn: leave it out", param=where
            )


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """An assistant's earlier calls, with their arguments as an object, as templates want them."""
    if not isinstance(calls, list):
        raise InvalidRequest(f"{where} must be a list", param=where)
    return [_call(call, f"{where}.{index}") for index, call in enumerate(calls)]


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{where} must have a function with a name", param=where)
    # Clients that put a stream together leave the index in.
    refuse_keys(call, ("id", "type", "index", "function"), where)
    refuse_keys(function, ("name", "arguments"), f"{where}.function")
    if call.get("type") not in (None, "function"):
        raise InvalidRequest(
            f"{where} is of type {quoted(call['type'])}: only functions are supported", param=where
        )
    if not isinstance(call.get("id"), str | None):
        raise InvalidRequest(f"{where}.id must be a string", param=f"{where}.id")
    arguments = arguments_of(function.get("arguments", ""), f"{where}.function.arguments")
    checked = {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
    return checked | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def arguments_of(raw: Any, where: str) -> dict[str, Any]:
    """The arguments of a call, which are JSON text at ``where``. Raises InvalidRequest."""
    arguments = None
    if isinstance(raw, str):
        try:
            arguments = orjson.loads(raw or "{}")
        except orjson.JSONDecodeError:
            arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{where} must be a JSON object, as a string", param=where)
    return arguments


def text_of(content: Any, where: str, part_types: Collection[str] = ("text",)) -> str:
    """The text of a content: a string, or a list of parts that are all text. Raises
    InvalidRequest."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of parts", param=where)
    return "".join(
        _part(part, f"{where}.{index}", part_types) for index, part in enumerate(content)
    )


def _part(part: Any, where: str, part_types: Collection[str]) -> str:
    part_type = part.get("type") if isinstance(part, dict) else None
    if part_type not in part_types:
        raise InvalidRequest(
            f"{where}: parts of type {quoted(part_type)} are not supported: send text", param=where
        )
    refuse_keys(part, ("type", "text", *_PART_NOTES), where)
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"{where}.text must be a string", param=f"{where}.text")
    return text


def read_completion(body: Mapping[str, Any], binding: Binding) -> GenerationRequest:
    """Raises InvalidRequest, naming the field that is wrong or not supported."""
    refuse_others(body, {"prompt", "echo", "logprobs", "best_of"}, binding)
    prompts = _prompts(body.get("prompt"), binding)
    if flag(body, "echo"):
        if any(prompt.source == binding.tokens for prompt in prompts):
            raise InvalidRequest("'echo' needs a text prompt: send one", param="echo")
        if "logprobs" in body:
            raise InvalidRequest(
                "'logprobs' with 'echo' is not supported: leave one out", param="logprobs"
            )
        prompts = [prompt._replace(echo=prompt.values[0]) for prompt in prompts]
    sampling = read(body, binding)
    constrain(sampling, grammar_of(body, binding), None, "response_format")
    top = None
    if "logprobs" in body:
        top = top_logprobs_of("completions", "logprobs", body["logprobs"], binding)
        sampling["logprobs"] = top
    n = choices_of(body, len(prompts), binding)
    return GenerationRequest(
        prompts,
        sampling,
        flag(body, "stream"),
        wants_usage(body),
        n,
        top,
        keeps_reasoning=True,
    )


async def with_text(body: Mapping[str, Any], binding: Binding) -> Mapping[str, Any]:
    """The body with a prompt of OpenAI's token ids decoded to text."""
    if binding.tokens or "prompt" not in body:
        return body
    vocabulary = {"vocabulary": binding.vocabulary}
    return {**body, "prompt": await as_text(body["prompt"], vocabulary, "prompt")}


def _prompts(value: Any, binding: Binding) -> list[Prompt]:
    """One prompt or several: each a text or token ids."""
    several = isinstance(value, list) and not are_tokens(value)
    values = value if several else [value]
    if not values:
        raise InvalidRequest("'prompt' is empty: send at least one token", param="prompt")
    if len(values) > binding.max_choices:
        raise InvalidRequest(
            f"a request to this model may have {binding.max_choices} prompts: send several "
            "requests",
            param="prompt",
        )
    return [
        _prompt(item, f"prompt.{index}" if several and len(values) > 1 else "prompt", binding)
        for index, item in enumerate(values)
    ]


def _prompt(value: Any, where: str, binding: Binding) -> Prompt:
    if isinstance(value, str) and value:
        return Prompt(binding.prompt, [value])
    if value in ("", []):
        raise InvalidRequest(f"{where!r} is empty: send at least one token", param=where)
    if are_tokens(value):
        if not binding.tokens:
            raise refusal(where)
        return Prompt(binding.tokens, value)
    raise InvalidRequest(f"'{where}' must be a text or a list of token ids", param=where)
