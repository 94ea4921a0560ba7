"""A recorded trace of requests, to be sent again at the same distances.

JSON lines, each a request: when it came, for which pipeline, and its text or the text's length:

    {"at_s": 0.0, "pipeline": "text_embedding", "text": "Where is my parcel?"}
    {"at_s": 0.4, "pipeline": "chat", "characters": 900, "max_tokens": 64, "tenant": "shop"}

or Azure's traces of inference (CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens),
whose requests are of one pipeline that chats.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.preflight import CannotStart

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
CHARACTERS_PER_TOKEN = 4  # of English text, roughly
MOST_REQUESTS = 1_000_000
MOST_CHARACTERS = 1_000_000
_KEYS = ("at_s", "pipeline", "text", "characters", "max_tokens", "tenant")


@dataclass(frozen=True)
class Recorded:
    """A request. ``at_s`` is in seconds from the start; without a ``text`` it has one of so many
    ``characters``, or any if that is 0; ``max_tokens`` is 0 if it does not matter."""

    line: int
    at_s: float
    pipeline: str
    text: str = ""
    characters: int = 0
    max_tokens: int = 0
    tenant: str = ""


@dataclass(frozen=True)
class Trace:
    """``speed`` is how many times as fast as it was recorded it is replayed."""

    name: str
    requests: tuple[Recorded, ...]
    speed: float = 1.0

    def __str__(self) -> str:
        return f"a recorded trace, {self.name}, at {self.speed:g} times its speed"

    @property
    def pipelines(self) -> list[str]:
        """Those that it has requests for, each once."""
        return list(dict.fromkeys(request.pipeline for request in self.requests))

    @property
    def due_s(self) -> npt.NDArray[np.float64]:
        """When each request is sent, in seconds from the start of the replay."""
        return np.array([request.at_s for request in self.requests]) / self.speed

    @property
    def duration_s(self) -> float:
        """Of the replay, with a mean distance after its last request."""
        last_s = float(self.due_s[-1])
        return last_s * (1 + 1 / max(1, len(self.requests) - 1)) or 1.0

    def rate(self, pipeline: str) -> float:
        """The mean of its requests per second."""
        return sum(own.pipeline == pipeline for own in self.requests) / self.duration_s


def read_trace(path: Path, speed: float, chosen: tuple[str, ...] = ()) -> Trace:
    """The requests of a file, of the ``chosen`` pipelines only if there are any; of a CSV file
    they are for the only chosen one, else for ``chat``. CannotStart names the line that cannot be
    replayed, or a chosen pipeline that has none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise CannotStart(f"{path} cannot be read: {reason}") from None
    is_azure = bool(lines) and lines[0].upper().startswith(AZURE[0])
    if is_azure and len(chosen) > 1:
        raise CannotStart(f"{path} is of one pipeline: pass --pipeline once")
    if is_azure:
        recorded = _azure(path, lines, chosen[0] if chosen else "chat")
    else:
        recorded = _json_lines(path, lines)
    requests = []
    before_s = 0.0
    for request in recorded:
        if request.at_s < before_s:
            raise CannotStart(
                f"{path}, line {request.line}: {request.at_s:g} s is before the request above it: "
                "sort the file by time"
            )
        before_s = request.at_s
        if not chosen or request.pipeline in chosen:
            requests.append(request)
        if len(requests) > MOST_REQUESTS:
            raise CannotStart(f"{path} has more than {MOST_REQUESTS} requests: replay a part of it")
    there = {request.pipeline for request in requests}
    missing = [name for name in chosen if name not in there]
    if missing or not requests:
        raise CannotStart(f"{path} has no request" + f" for {', '.join(missing)}" * bool(missing))
    return Trace(path.name, tuple(requests), speed)


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[Recorded]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        refuse = _refusal(path, number)
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError):
            raise refuse("it is not JSON") from None
        if not isinstance(row, dict):
            raise refuse("it is not an object: write {...}")
        for key in row:
            if key not in _KEYS:
                raise refuse(f"{key!r} is not known: write {', '.join(_KEYS)}")
        at_s, pipeline = row.get("at_s"), row.get("pipeline")
        if isinstance(at_s, bool) or not isinstance(at_s, int | float) or not 0 <= at_s < 1e9:
            raise refuse(f"at_s = {at_s!r} is not a number of seconds since the start")
        if not isinstance(pipeline, str) or not pipeline:
            raise refuse(f"pipeline = {pipeline!r} is not the name of one")
        for key in ("text", "tenant"):
            if not isinstance(row.get(key, ""), str):
                raise refuse(f"{key} = {row[key]!r} is not a string")
        if "text" in row and "characters" in row:
            raise refuse("it has a text and its characters: write one of them")
        yield Recorded(
            number,
            float(at_s),
            pipeline,
            row.get("text", ""),
            _count(refuse, "characters", row.get("characters", 0)),
            _count(refuse, "max_tokens", row.get("max_tokens", 0)),
            row.get("tenant", ""),
        )


def _azure(path: Path, lines: list[str], pipeline: str) -> Iterator[Recorded]:
    reader = csv.DictReader(lines)
    missing = [name for name in AZURE if name not in (reader.fieldnames or ())]
    if missing:
        raise CannotStart(f"{path}, line 1: the column {missing[0]} is missing")
    began: datetime | None = None
    for row in reader:
        refuse = _refusal(path, reader.line_num)
        try:
            at = datetime.fromisoformat(row[AZURE[0]])
            began = began or at
            at_s = (at - began).total_seconds()
        except (ValueError, TypeError):  # a column too few, and times with a zone and without
            raise refuse(f"{row[AZURE[0]]!r} is not a time like the others") from None
        context, generated = (_count(refuse, name, row[name]) for name in AZURE[1:])
        characters = max(1, CHARACTERS_PER_TOKEN * context)
        yield Recorded(
            reader.line_num, at_s, pipeline, characters=characters, max_tokens=max(1, generated)
        )


def _refusal(path: Path, number: int) -> Callable[[str], CannotStart]:
    return lambda why: CannotStart(f"{path}, line {number}: {why}")


def _count(refuse: Callable[[str], CannotStart], key: str, value: Any) -> int:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        value, is_number = int(value), True
    if not is_number or not 0 <= value <= MOST_CHARACTERS:
        raise refuse(f"{key} = {value!r} is not a number from 0 to {MOST_CHARACTERS}")
    return int(value)


def text_of(characters: int, texts: Iterator[str]) -> str:
    """Real texts, one after the other, as far as they are so long."""
    text = next(texts)
    while len(text) < characters:
        text = f"{text} {next(texts)}"
    return text[:characters]
