"""A customer's conversation: in English and Chinese through ``customer_service``, or in English
through its pipelines that are served."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from ensembles.customer_service import NAME
from tidegate.app.chat import printable
from tidegate.app.client import GatewayClient, GatewayResponse

# The second is answered from the knowledge base, the last by nobody: a person takes over.
MESSAGES = (
    "Hello! I am Emma Clarke from London.",
    "My computer is overheating, what should I do?",
    "物流很快\uff0c昨天下单今天就到了\uff0c很满意\u3002",
    "质量太差了\uff0c用了两天就坏了\u3002",
    "我叫王芳\uff0c住在上海\uff0c请给我打电话\u3002",
    "Can I pay with the points of my airline?",
)
ENGLISH = tuple(message for message in MESSAGES if message.isascii())
TOPIC, REPLY = "topic_classification", "smart_reply"
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
            "[to a colleague]"
            if answer["hand_over"]
            else f"[{answer['source']}, {answer['confidence']:.2f}]"
        )
        lines.append(_line("reply", f"{answer['reply']} {source}"))
        steps = ", ".join(
            f"{step['name']} not answered" if step["error"] else f"{step['name']} {step['ms']:.0f}"
            for step in answer["steps"]
        )
        lines.append(_line("time", f"{self.ms:.0f} ms ({steps})"))
        return lines


def converse(client: GatewayClient) -> list[Turn]:
    """What ``customer_service`` responds to MESSAGES; where it is not served, what ``smart_reply``
    and ``topic_classification`` respond to those in English; none without a reply."""
    if client.serves(NAME):
        return [_turn(message, client.call(NAME, {"text": message})) for message in MESSAGES]
    if not client.serves(REPLY):
        return []
    has_topic = client.serves(TOPIC)
    return [_turn_of_services(client, message, has_topic=has_topic) for message in ENGLISH]


def _turn(message: str, response: GatewayResponse) -> Turn:
    return Turn(message, response.body, _total_ms(response))


def _turn_of_services(client: GatewayClient, message: str, *, has_topic: bool) -> Turn:
    """A turn with the fields of ``customer_service``, of which sentiment and entities are empty."""
    reply = client.call(REPLY, {"text": message})
    responses = {"topic": client.call(TOPIC, {"text": message})} if has_topic else {}
    times_ms = {
        name: _total_ms(response) for name, response in {**responses, "reply": reply}.items()
    }
    topic = responses["topic"].body["labels"] if has_topic else []
    steps = [{"name": name, "ms": ms, "error": ""} for name, ms in times_ms.items()]
    body = {**reply.body, "topic": topic, "sentiment": [], "entities": [], "steps": steps}
    return Turn(message, body, round(sum(times_ms.values()), 3))


def _total_ms(response: GatewayResponse) -> float:
    return round(sum(response.timing.values()), 3)


def conversation_text(turns: Sequence[Turn]) -> str:
    """The conversation as lines of text."""
    heading = click.style("A customer's conversation", bold=True)
    return "\n".join([heading, *(line for turn in turns for line in ["", *turn.lines()])])


def _line(name: str, value: str) -> str:
    return f"    {name:<{WIDTH}}{printable(value)}"
