"""Renders a conversation as the text that the model was trained to read.

The template comes from the model's config. It runs in Jinja2's sandbox, and sees only the messages
and the endpoint schema's ``variables``.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.errors import Internal, InvalidRequest
from modelspec.errors import DeclarationError

log = logging.getLogger("gateway")
# The format of most instruction-tuned models, and the default.
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Describes the tools to a model whose template takes none, and the form of its calls.
TOOLS_PROMPT = (
    "You can call functions. Each line in <tools></tools> describes one, as JSON:\n"
    "<tools>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools>\n"
    "To call one, answer with its name and arguments as JSON in <tool_call></tool_call>:\n"
    '<tool_call>\n{"name": "NAME", "arguments": {}}\n</tool_call>'
)
MARKERS = ("<|im_start|>", "<|im_end|>")


class _Refused(jinja2.TemplateError):
    """Raised by the template itself, with what is wrong with the conversation."""


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@lru_cache(256)
def compiled(template: str) -> jinja2.Template:
    """Raises DeclarationError, which names the line that is invalid."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _tojson
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise DeclarationError(
            f"has a chat template that is wrong in line {error.lineno}: {error.message}"
        ) from error


@lru_cache(256)
def takes_tools(template: str) -> bool:
    """Whether the template itself tells the model of the variable ``tools``."""
    tree = jinja2.Environment(  # noqa: S701 - it is parsed, not rendered
        extensions=["jinja2.ext.loopcontrols"]
    ).parse(template)
    return "tools" in meta.find_undeclared_variables(tree)


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, str],
    tools: Sequence[Mapping[str, Any]] = (),
    opens_turn: bool = True,
) -> str:
    """The prompt, which ends with the beginning of the model's turn if ``opens_turn``. ``tools``
    are OpenAI's. Raises InvalidRequest if the template refuses the conversation."""
    given = {"tools": tools, **variables} if tools else variables
    try:
        return compiled(template).render(
            messages=messages, add_generation_prompt=opens_turn, **given
        )
    except _Refused as error:
        raise InvalidRequest(f"messages: {str(error.message)[:200]}", param="messages") from None
    except Exception as error:  # a template may raise anything
        log.error("a chat template failed: %r", error)
        raise Internal("the model's chat template failed: report the request id") from error
