"""Reads a request to ``/v1/responses``: the items of its input become a chat's messages, and what
the model receives of them is what it would receive of that chat."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.api.openai.fields import flag, present
from gateway.api.openai.generation import GenerationRequest
from gateway.api.openai.request import (
    arguments_of,
    chat_prompt,
    checked_message,
    constrain,
    refuse_markers,
    text_of,
)
from gateway.api.openai.sampling import (
    HARMLESS,
    Unsupported,
    kept,
    read,
    refuse_top_logprobs,
    refuse_unsupported,
    top_logprobs_of,
    wants_usage,
)
from gateway.api.openai.structured_output import response_grammar
from gateway.api.openai.tools import read_tools
from gateway.errors import SHOWN, InvalidRequest, quoted
from gateway.models.text_binding import STRUCTURED_OUTPUTS, Binding

Json = dict[str, Any]
MAX_TOKENS = "max_output_tokens"
LOGPROBS = "message.output_text.logprobs"  # of ``include``
_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
_OUTPUT = ("text", "include", "top_logprobs", "stop", "stream", "stream_options")
_FIELDS = frozenset(("model", "input", "instructions", *_TOOLS, *_OUTPUT, *HARMLESS))
_STORED = "nothing is stored here: send the whole conversation as 'input'"
_LEAVE = "leave it out"
# As in ``sampling``: the values that change nothing, and what to do.
_UNSUPPORTED: Unsupported = {
    "store": ((False,), "nothing is stored here: send false, or leave it out"),
    "previous_response_id": ((), _STORED),
    "conversation": ((), _STORED),
    "background": ((False,), "wait for the response, or stream it"),
    "prompt": ((), "send its text as 'instructions'"),
    "reasoning": (({}, {"effort": "none"}), _LEAVE),
    "truncation": (("disabled",), "send less input"),
    "service_tier": (("auto", "default"), _LEAVE),
    "max_tool_calls": ((), "it counts the calls of hosted tools, and there are none"),
    "context_management": (([],), _LEAVE),
    "prompt_cache_retention": ((), _LEAVE),
    "moderation": ((), _LEAVE),
    "prompt_cache_options": (({},), _LEAVE),
    "access_programs": (([],), _LEAVE),
    "image": ((), "this model returns only text"),
    "messages": ((), "send 'input'"),
    "response_format": ((), "send 'text'"),
    "n": ((1,), "send several requests"),
    "max_tokens": ((), f"send {MAX_TOKENS!r}"),
    "max_completion_tokens": ((), f"send {MAX_TOKENS!r}"),
}
_ROLES = ("user", "assistant", "system", "developer")
_PARTS = ("input_text", "output_text")
_OF_OUTPUT = ("type", "id", "status")  # of an item that was output once: they say nothing more


def read_response(body: Mapping[str, Any], binding: Binding) -> GenerationRequest:
    """Raises InvalidRequest, naming the field that is wrong or not supported."""
    supported = _FIELDS | (binding.takes - {STRUCTURED_OUTPUTS, "max_tokens"})
    if "max_tokens" in binding.takes:
        supported |= {MAX_TOKENS}
    refuse_unsupported(body, supported, _UNSUPPORTED)
    tools = read_tools(body, binding, is_flat=True)
    messages = _conversation(body, binding)
    sampling = read(body, binding, [MAX_TOKENS])
    constrain(sampling, _grammar(body, binding), tools, "text.format")
    top = _top_logprobs(body, binding)
    if top is not None and (tools or binding.reasoning):
        raise InvalidRequest(
            f"{LOGPROBS!r} is not supported for a text that may have tool calls or reasoning in "
            "it: use chat completions",
            param="include",
        )
    if top is not None:
        sampling["logprobs"] = top
    if wants_usage(body):
        raise InvalidRequest(
            "'include_usage' is not supported: a response always has its usage",
            param="stream_options",
        )
    try:
        prompt = chat_prompt(messages, tools, binding)
    except InvalidRequest as error:  # of the chat template, which knows messages only
        raise InvalidRequest(error.message, param="input") from None
    return GenerationRequest(
        [prompt], sampling, flag(body, "stream"), top_logprobs=top, tools=tools
    )


def _grammar(body: Mapping[str, Any], binding: Binding) -> Json | None:
    text = body.get("text", {})
    if not isinstance(text, dict):
        raise InvalidRequest("'text' must be an object with 'format'", param="text")
    text = present(text, "format")
    form = text.pop("format", {"type": "text"})
    if text:
        field = f"text.{next(iter(text))[:SHOWN]}"
        raise InvalidRequest(f"{field!r} is not supported: leave it out", param=field)
    return kept(
        response_grammar(form, binding, "text.format", is_flat=True), "text.format", binding
    )


def _top_logprobs(body: Mapping[str, Any], binding: Binding) -> int | None:
    include = body.get("include", [])
    if not isinstance(include, list):
        raise InvalidRequest("'include' must be a list", param="include")
    others = [name for name in include if name != LOGPROBS]
    if others:
        raise InvalidRequest(
            f"'include' has {quoted(others[0])}, which is not supported: leave it out",
            param="include",
        )
    if include:
        field = "top_logprobs" if "top_logprobs" in body else "include"
        return top_logprobs_of("chat", field, body.get("top_logprobs", 0), binding)
    refuse_top_logprobs(body, f"{LOGPROBS!r} in 'include'")
    return None


def _conversation(body: Mapping[str, Any], binding: Binding) -> list[Json]:
    """The instructions and the input as messages, checked, as a chat template takes them."""
    value = body.get("input")
    items = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise InvalidRequest("'input' must be a text or a list of items", param="input")
    turns = _Turns(binding)
    instructions = body.get("instructions")
    if instructions is not None:
        if not isinstance(instructions, str):
            raise InvalidRequest("'instructions' must be a string", param="instructions")
        message = {"role": "system", "content": instructions}
        turns.messages.append(checked_message(message, "instructions", binding))
    for index, item in enumerate(items):
        turns.add(item, "input" if isinstance(value, str) else f"input.{index}")
    return turns.messages


class _Turns:
    """Messages from items. What the model said in one turn (its reasoning, its text, its calls) is
    an item each, and one message of a chat."""

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self.messages: list[Json] = []
        self._said: Json | None = None  # the assistant's message that items may yet add to
        self._calls: set[str] = set()  # their ids

    def add(self, item: Any, where: str) -> None:
        fields = present(item, "type") if isinstance(item, dict) else None
        kind = fields.get("type", "message") if fields is not None else None
        readers = {
            "message": self._message,
            "reasoning": self._reasoning,
            "function_call": self._call,
            "function_call_output": self._result,
        }
        if fields is None or not isinstance(kind, str) or kind not in readers:
            remedy = _STORED if kind == "item_reference" else f"send {', '.join(readers)}"
            raise InvalidRequest(
                f"{where}: items of type {quoted(kind)} are not supported: {remedy}", param=where
            )
        if kind.startswith("function_call") and self._binding.tools is None:
            raise InvalidRequest(
                f"{where}: items of type {kind!r} are not supported by this model: send messages",
                param=where,
            )
        readers[kind]({key: fields[key] for key in fields if key not in _OF_OUTPUT}, where)

    def _message(self, fields: Json, where: str) -> None:
        if fields.get("role") not in _ROLES:
            raise InvalidRequest(
                f"{where}.role must be one of {', '.join(_ROLES)}", param=f"{where}.role"
            )
        role = fields.pop("role")
        content = text_of(fields.pop("content", ""), f"{where}.content", _PARTS)
        _refuse_rest(fields, where)
        message = checked_message({"role": role, "content": content}, where, self._binding)
        if message["role"] != "assistant":
            self._end()
            self.messages.append(message)
            return
        if self._said and (self._said["content"] or "tool_calls" in self._said):
            self._end()
        self._assistant().update(message)

    def _reasoning(self, fields: Json, where: str) -> None:
        parts = fields.pop("content", [])
        _refuse_rest(fields, where)
        text = text_of(parts, f"{where}.content", ("reasoning_text",))
        refuse_markers([text], where, self._binding)
        self._end()
        if text:
            self._assistant()["reasoning_content"] = text

    def _call(self, fields: Json, where: str) -> None:
        name, call_id = (_string(fields, key, where) for key in ("name", "call_id"))
        arguments = arguments_of(fields.pop("arguments", ""), f"{where}.arguments")
        _refuse_rest(fields, where)
        refuse_markers([name, orjson.dumps(arguments).decode()], where, self._binding)
        self._calls.add(call_id)
        call = {
            "type": "function",
            "function": {"name": name, "arguments": arguments},
            "id": call_id,
        }
        self._assistant().setdefault("tool_calls", []).append(call)

    def _result(self, fields: Json, where: str) -> None:
        call_id = _string(fields, "call_id", where)
        text = text_of(fields.pop("output", None), f"{where}.output", _PARTS)
        _refuse_rest(fields, where)
        if call_id not in self._calls:
            raise InvalidRequest(
                f"{where}.call_id is that of no function_call before it: send that item too",
                param=f"{where}.call_id",
            )
        refuse_markers([text], where, self._binding)
        self._end()
        self.messages.append({"role": "tool", "content": text, "tool_call_id": call_id})

    def _assistant(self) -> Json:
        if self._said is None:
            self._said = {"role": "assistant", "content": ""}
            self.messages.append(self._said)
        return self._said

    def _end(self) -> None:
        self._said = None


def _string(fields: Json, key: str, where: str) -> str:
    value = fields.pop(key, None)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{where}.{key} must be a string", param=f"{where}.{key}")
    return value


def _refuse_rest(fields: Mapping[str, Any], where: str) -> None:
    others: Sequence[str] = [name for name, value in fields.items() if value not in ([], "")]
    if others:
        field = f"{where}.{others[0][:SHOWN]}"
        raise InvalidRequest(f"{field} is not supported: leave it out", param=field)
