"""What the engine's process and the model's process in Triton tell each other: lines of JSON.

To the engine: ``["ask", number, *Question]`` and ``["cancel", number]``. From it: ``["refused",
reason]`` or ``["ready"]`` once, then ``["load", *Load]``, ``["send", number, prompt_tokens, pieces,
is_last]`` and ``["fail", number, kind, words, retry_after_s]``. Nothing here depends on Triton or
on the engine.
"""

import json
import math
from dataclasses import astuple, dataclass
from typing import Any

from lm_sampling import PromptTooLong, Refused

MAX_RETRY_S = 30


class Busy(Exception):
    """No room: refused at once, and worth another try after so many seconds."""

    def __init__(self, words: str, after_s: float = 0.0) -> None:
        super().__init__(words)
        self.retry_after_s = min(max(1, math.ceil(after_s)), MAX_RETRY_S)


class Cancelled(Exception):
    """The client has left, or the model is being unloaded."""


class EngineDied(Exception):
    """The engine failed, and with it everything under way."""


class RequestFailed(Exception):
    """Something else failed, which is not the client's fault."""


_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (Refused, PromptTooLong, Busy, Cancelled, EngineDied, RequestFailed)
}


@dataclass(frozen=True)
class Question:
    """One request. ``parameters`` is vLLM's JSON of its sampling parameters."""

    prompt: str
    prompt_ids: list[int]  # instead of ``prompt``, if there are any
    parameters: str
    is_stream: bool
    echoes: bool  # returns the prompt before the text
    wants_cumulative: bool  # the log-probability of all that was generated
    tokenizer_request: str = ""  # instead of all others: lm_tokens


@dataclass(frozen=True)
class SentPiece:
    """What is new of one sequence. ``logprobs`` is JSON, ``cumulative`` of the whole sequence."""

    text: str
    tokens: int
    finish_reason: str | None
    logprobs: str
    cumulative: float


@dataclass(frozen=True)
class Load:
    """How much there is to do. ``kv_usage`` is 0 to 1, of the last step."""

    queued: int = 0
    running: int = 0
    kv_usage: float = 0.0
    cancelled: int = 0
    generated: int = 0
    next_place_s: float = 0.0  # until one that waits is expected to begin


def line(kind: str, *values: Any) -> bytes:
    return json.dumps([kind, *values]).encode() + b"\n"


def question_line(number: int, question: Question) -> bytes:
    return line("ask", number, *astuple(question))


def failure_line(number: int, error: Exception) -> bytes:
    kind = type(error).__name__
    retry_after_s = error.retry_after_s if isinstance(error, Busy) else None
    known = kind if kind in _KINDS else RequestFailed.__name__
    return line("fail", number, known, str(error), retry_after_s)


def failure_of(kind: str, words: str, retry_after_s: int | None = None) -> Exception:
    """The error of a ``fail`` line."""
    if retry_after_s is not None:
        return Busy(words, retry_after_s)
    return _KINDS[kind](words)
