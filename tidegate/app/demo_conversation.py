"""A customer's conversation, in English and Chinese, through ``customer_service``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from ensembles.customer_service import NAME
from ensembles.steps.nearest_answers import KNOWLEDGE_BASE
from tidegate.app.chat import printable
from tidegate.app.client import GatewayClient

# The second is answered from the knowledge base, the last by nobody: a person takes over.
MESSAGES = (
    "Hello! I am Emma Clarke from London.",
    "My computer is overheating, what should I do?",
    "物流很快\uff0c昨天下单今天就到了\uff0c很满意\u3002",
    "质量太差了\uff0c用了两天就坏了\u3002",
    "我叫王芳\uff0c住在上海\uff0c请给我打电话\u3002",
    "Can I pay with the points of my airline?",
)
WIDTH = 12  # of the column before the values


@dataclass(frozen=True)
class Turn:
    """``answer`` is the response to the message; ``ms`` the time from request to response."""

    message: str
    answer: Mapping[str, Any]
    ms: float

    def lines(self) -> list[str]:
        answer = self.answer
        lines = [f"  {click.style(self.message, bold=True)}"]
        for name in ("topic", "sentiment"):
            if answer[name]:
                best = answer[name][0]
                lines.append(_line(name, f"{best['label']} ({best['score']:.2f})"))
        if answer["entities"]:
            entities = ", ".join(f"{one['text']} ({one['label']})" for one in answer["entities"])
            lines.append(_line("entities", entities))
        source = (
            f"[{answer['source']}, {answer['confidence']:.2f}]"
            if answer["from"] == KNOWLEDGE_BASE
            else "[to a colleague]"
        )
        lines.append(_line("reply", f"{answer['reply']} {source}"))
        steps = ", ".join(
            f"{step['name']} not answered" if step["error"] else f"{step['name']} {step['ms']:.0f}"
            for step in answer["steps"]
        )
        lines.append(_line("time", f"{self.ms:.0f} ms ({steps})"))
        return lines


def converse(client: GatewayClient) -> list[Turn]:
    """The answers to MESSAGES; none if ``customer_service`` is not served."""
    if not client.serves(NAME):
        return []
    responses = [client.call(NAME, {"text": message}) for message in MESSAGES]
    return [
        Turn(message, response.body, round(sum(response.timing.values()), 3))
        for message, response in zip(MESSAGES, responses, strict=True)
    ]


def conversation_text(turns: Sequence[Turn]) -> str:
    """The conversation as lines of text."""
    heading = click.style("A customer's conversation", bold=True)
    return "\n".join([heading, *(line for turn in turns for line in ["", *turn.lines()])])


def _line(name: str, value: str) -> str:
    return f"    {name:<{WIDTH}}{printable(value)}"
