"""Real sentences and a real photo through the running stack, and where the time went."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from modelspec.names import Role, member_name
from tidegate.app.chat import ChatOptions, Conversation, NoChatModel, printable
from tidegate.app.claim import ready_in, running_in
from tidegate.app.client import GatewayClient
from tidegate.app.demo_photo import ENDPOINT as PHOTO_ENDPOINT
from tidegate.app.demo_photo import Photo, describe_photo, show_photo
from tidegate.app.paths import Paths
from tidegate.app.triton_times import StepTimes, measured

ENDPOINT = "text_embedding"
STEPS = tuple(member_name(ENDPOINT, role) for role in (Role.PRE, Role.ENGINE))
# Two pairs of paraphrases, and one sentence that matches neither.
SENTENCES = (
    "Where is my parcel?",
    "When will my order be delivered?",
    "I would like my money back.",
    "How do I get a refund?",
    "The cat sleeps in the sun.",
)
# Of a question with a short answer, always the same one.
QUESTION, BOUNDS = "What is the capital of France?", ChatOptions(max_tokens=40, temperature=0.0)
ROUNDS = 5  # a single round would only show a cold server


@dataclass(frozen=True)
class Result:
    """``similarity`` is cosine [n, n]. Times are milliseconds, the mean of one request: gateway
    and upstream add up to the time in the gateway; steps are counted by Triton, within upstream.
    Without a pipeline for photos there is no ``photo``."""

    sentences: Sequence[str]
    similarity: list[list[float]]
    gateway_ms: float
    upstream_ms: float
    steps: Mapping[str, StepTimes]
    photo: Photo | None

    def text(self) -> str:
        """The result as lines of text."""
        photo = [describe_photo(self.photo)] if self.photo else []
        return "\n".join([_similarities(self), _times(self), *photo])


def gateway(paths: Paths, url: str | None) -> GatewayClient:
    """The gateway at ``url``, by default that of the stack that runs in this home; StillStarting
    before that is ready."""
    running = None if url else ready_in(paths.state)
    return GatewayClient.at(url or (running.url if running else "http://127.0.0.1:8080"))


def run(paths: Paths, url: str | None, triton: str | None) -> Result:
    """Embed every sentence ROUNDS times and classify the photo, if a pipeline for it is served.

    ``url`` (the gateway) and ``triton`` (HOST:PORT, gRPC) are by default those of the stack that
    runs in this home. Raises ServingError when it does not answer.
    """
    running, client = running_in(paths.state), gateway(paths, url)
    triton = triton or f"127.0.0.1:{running.triton['grpc'] if running else 8001}"
    with measured(triton, STEPS) as steps:
        responses = [
            client.call(ENDPOINT, {"text": sentence})
            for _ in range(ROUNDS)
            for sentence in SENTENCES
        ]
    vectors = np.array(
        [response.body["embedding"] for response in responses[: len(SENTENCES)]], dtype=np.float32
    )
    return Result(
        SENTENCES,
        [[round(float(value), 4) for value in row] for row in vectors @ vectors.T],
        _mean([response.timing["gateway"] for response in responses]),
        _mean([response.timing["upstream"] for response in responses]),
        steps,
        show_photo(client) if client.serves(PHOTO_ENDPOINT) else None,
    )


def chat_reply(paths: Paths, url: str | None) -> Iterator[str]:
    """The answer to ``QUESTION`` as it arrives; nothing if no chat model is served."""
    try:
        conversation = Conversation.open(paths, url, BOUNDS)
    except NoChatModel:
        return
    with closing(conversation):
        yield from map(printable, conversation.ask(QUESTION))


def _similarities(result: Result) -> str:
    lines = [click.style("How near the sentences are (1 = the same meaning)", bold=True)]
    for index, (sentence, row) in enumerate(zip(result.sentences, result.similarity, strict=True)):
        cells = "".join(_cell(value, index == column) for column, value in enumerate(row))
        lines.append(f"  {index + 1} {sentence:<34}{cells}")
    return "\n".join(lines)


def _cell(value: float, is_self: bool) -> str:
    text = f"{value:7.2f}"
    return click.style(text, fg="green", bold=True) if value > 0.5 and not is_self else text


def _times(result: Result) -> str:
    total = result.gateway_ms + result.upstream_ms
    lines = ["", click.style(f"Where {total:.2f} ms of a request went", bold=True)]
    rows: list[tuple[str, float]] = [("gateway", result.gateway_ms)]
    for name, step in result.steps.items():
        rows += [(f"{name}: queue", step.queue_ms), (f"{name}: compute", step.compute_ms)]
    inside = sum(step.queue_ms + step.compute_ms for step in result.steps.values())
    rows.append(("transport and Triton's scheduling", max(0.0, result.upstream_ms - inside)))
    lines += [f"  {name:<36}{value:8.2f} ms {_bar(value, total)}" for name, value in rows]
    return "\n".join(lines)


def _bar(value: float, total: float) -> str:
    return "#" * round(30 * value / total) if total else ""


def _mean(values: Sequence[Any]) -> float:
    return round(float(np.mean(values)), 3)
