"""The tools of a request: what the model is told of them, and how its calls are read."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from gateway.api.openai.fields import flag, refuse_keys
from gateway.api.openai.output_parsers import (
    CALL_END,
    CALL_START,
    HermesCalls,
    NamedCall,
    Parser,
    RequiredCalls,
)
from gateway.api.openai.structured_output import check_schema, rebased
from gateway.errors import InvalidRequest, quoted
from gateway.models.chat_template import compiled, takes_tools
from gateway.models.text_binding import STRUCTURED_OUTPUTS, Binding

Json = dict[str, Any]
MAX_TOOLS = 128
MAX_PARALLEL = 8  # calls that a grammar lets the model write; without an end some never stop
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NO_PARAMETERS: Json = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tools:
    """The functions that the model may call (``auto``), must call one of (``required``), or of
    which it must call ``name``."""

    functions: Sequence[Json]  # as OpenAI writes them: {"type": "function", "function": {...}}
    choice: Literal["auto", "required", "named"]
    name: str = ""
    parallel: bool | None = None  # False: at most one call; None: one of those that are required

    def parser(self) -> Parser:
        """A parser for one text of the model."""
        if self.choice == "auto":
            return HermesCalls(single=self.parallel is False)
        return NamedCall(self.name) if self.choice == "named" else RequiredCalls()

    @property
    def grammar(self) -> Json | None:
        """``structured_outputs`` that make the model call; None if it is free to."""
        if self.choice == "auto":
            return None
        schemas = {
            tool["function"]["name"]: tool["function"].get("parameters") or _NO_PARAMETERS
            for tool in self.functions
        }
        if self.choice == "named":
            return {"json": schemas[self.name]}
        definitions = {name: rebased(schema, f"#/$defs/{name}") for name, schema in schemas.items()}
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": name},
                    "arguments": {"$ref": f"#/$defs/{name}"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name in schemas
        ]
        one: Json = calls[0] if len(calls) == 1 else {"anyOf": calls}
        if self.parallel:
            one = {"type": "array", "items": one, "minItems": 1, "maxItems": MAX_PARALLEL}
        return {"json": {**one, "$defs": definitions}}


def read_tools(body: Mapping[str, Any], binding: Binding, is_flat: bool = False) -> Tools | None:
    """The request's tools, None if the model is to know of none. Flat ones have a function's name
    beside their type, as Responses writes them. Raises InvalidRequest."""
    parallel = flag(body, "parallel_tool_calls") if "parallel_tool_calls" in body else None
    tools, choice = body.get("tools", []), body.get("tool_choice", "auto")
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"'tools' must be a list of at most {MAX_TOOLS} tools", param="tools")
    if not tools:
        if choice not in ("none", "auto"):
            raise InvalidRequest("'tool_choice' needs 'tools': send them", param="tool_choice")
        return None
    if binding.tools is None:
        raise InvalidRequest(
            "'tools' is not supported by this model: describe the tools in a message and read the "
            "answer yourself",
            param="tools",
        )
    kind, name = _choice(choice, is_flat)
    functions = [
        _function(
            *_declared(tool, f"tools.{index}", is_flat), binding, kind in ("required", "named")
        )
        for index, tool in enumerate(tools)
    ]
    names = [tool["function"]["name"] for tool in functions]
    if len(set(names)) < len(names):
        raise InvalidRequest("'tools' has two functions of one name: rename one", param="tools")
    if kind == "none":
        return None
    if kind == "named" and name not in names:
        raise InvalidRequest(
            f"'tool_choice' names {quoted(name)}, which is not among the tools",
            param="tool_choice",
        )
    if kind != "auto" and STRUCTURED_OUTPUTS not in binding.takes:
        raise InvalidRequest(
            "'tool_choice' can only be none or auto for this model: it keeps no grammar",
            param="tool_choice",
        )
    return Tools(functions, kind, name, parallel)


def _choice(value: Any, is_flat: bool) -> tuple[Any, str]:
    """none, auto, required or named, and the name."""
    if value in ("none", "auto", "required"):
        return value, ""
    if isinstance(value, dict) and value.get("type") == "function":
        function = value if is_flat else value.get("function")
        if isinstance(function, dict) and isinstance(name := function.get("name"), str):
            refuse_keys(value, ("type", "name" if is_flat else "function"), "tool_choice")
            refuse_keys(function, ("type", "name"), "tool_choice.function")
            return "named", name
    shape = '"name": ...' if is_flat else '"function": {"name": ...}'
    raise InvalidRequest(
        f'\'tool_choice\' must be none, auto, required or {{"type": "function", {shape}}}',
        param="tool_choice",
    )


def _declared(tool: Any, where: str, is_flat: bool) -> tuple[Json, str]:
    """A tool's function and where it stands; raises InvalidRequest for a tool that is none."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    if is_flat:
        if kind != "function":
            raise InvalidRequest(
                f"{where} is of type {quoted(kind)}, which is not supported: only functions are, "
                "which the client calls",
                param=f"{where}.type",
            )
        return {key: tool[key] for key in tool if key != "type"}, where
    if kind != "function":
        raise InvalidRequest(
            f'{where} must be {{"type": "function", "function": {{...}}}}: other tools are not '
            "supported",
            param=where,
        )
    refuse_keys(tool, ("type", "function"), where)
    function, where = tool.get("function"), f"{where}.function"
    if not isinstance(function, dict):
        raise InvalidRequest(f"{where} must be an object with 'name'", param=where)
    return function, where


def _function(function: Json, where: str, binding: Binding, is_grammar: bool) -> Json:
    refuse_keys(function, ("name", "description", "parameters", "strict"), where)
    function = {key: value for key, value in function.items() if value is not None}
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{where}.name must be 1 to 64 letters, digits, _ or -", param=f"{where}.name"
        )
    if not isinstance(function.get("description", ""), str):
        raise InvalidRequest(f"{where}.description must be a string", param=where)
    # A call that a grammar makes is always strict, and no other one is.
    if type(function.pop("strict", False)) is not bool:
        raise InvalidRequest(f"{where}.strict must be true or false", param=f"{where}.strict")
    if "parameters" in function:
        check_schema(function["parameters"], f"{where}.parameters", binding, is_grammar)
    definition = orjson.dumps(function).decode()
    for marker in binding.forbidden:
        if marker in definition:
            raise InvalidRequest(
                f"{where} contains {marker!r}, which would forge a turn: leave it out", param=where
            )
    return {"type": "function", "function": function}


def with_instructions(
    messages: Sequence[Json], tools: Tools | None, binding: Binding
) -> list[Json]:
    """The messages for a chat template that takes no ``tools``: their description becomes part of
    the system's text, calls and results the text that the model itself would write and read."""
    if binding.tools is None or takes_tools(binding.template):
        return list(messages)
    written = [_written(message) for message in messages]
    if tools is None:
        return written
    text = compiled(binding.tools.prompt).render(tools=tools.functions)
    if written and written[0]["role"] == "system":
        first, *written = written
        text = f"{first['content']}\n\n{text}"
    return [{"role": "system", "content": text}, *written]


def _written(message: Json) -> Json:
    if message["role"] == "tool":
        content = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "tool", "content": content}
    if "tool_calls" not in message:
        return message
    calls = [
        f"{CALL_START}\n{orjson.dumps(call['function']).decode()}\n{CALL_END}"
        for call in message["tool_calls"]
    ]
    content = "\n".join([*filter(None, [message["content"]]), *calls])
    return {"role": "assistant", "content": content}
