"""The answers of OpenAI's text routes, whole or in pieces."""

import time
from typing import Any

import orjson

from gateway.api.event_streams import event, one_line
from gateway.api.openai.generation import Generation

Json = dict[str, Any]
_MARK = "\N{SYMBOL FOR NULL}tidegate\N{SYMBOL FOR NULL}"  # stands where a piece's text comes


class Form:
    """What the routes have in common; a subclass says how a text is wrapped."""

    id_prefix = whole_object = piece_object = ""

    def __init__(self, request_id: str, model: str, include_usage: bool) -> None:
        identifier = f"{self.id_prefix}-{request_id}"
        self._same = {"id": identifier, "created": int(time.time()), "model": model}
        self._include_usage = include_usage
        # A piece is written often: all but its text is written once.
        piece = event(orjson.dumps(self._piece(self.delta(_MARK), None)))
        self._before, self._after = piece.split(orjson.dumps(_MARK))

    def delta(self, text: str) -> Json:
        raise NotImplementedError

    def choice(self, text: str) -> Json:
        raise NotImplementedError

    def opening(self) -> bytes:
        """Events before the text."""
        return b""

    def piece(self, text: str) -> bytes:
        return self._before + one_line(orjson.dumps(text)) + self._after

    def closing(self, generation: Generation) -> bytes:
        """Events after the text: why it ended and, if asked for, what it used."""
        last = [self._piece(self.last_delta(), generation.finish_reason)]
        if self._include_usage:
            last.append({**self._piece({}, None), "choices": [], "usage": generation.usage})
        return b"".join(event(orjson.dumps(each)) for each in last)

    def last_delta(self) -> Json:
        return self.delta("")

    def whole(self, text: str, generation: Generation) -> Json:
        choice, reason = self.choice(text), generation.finish_reason
        return self._object(self.whole_object, choice, reason, usage=generation.usage)

    def _piece(self, delta: Json, finish_reason: str | None) -> Json:
        usage = {"usage": None} if self._include_usage else {}
        return self._object(self.piece_object, delta, finish_reason, **usage)

    def _object(self, kind: str, choice: Json, finish_reason: str | None, **usage: Any) -> Json:
        choice = {"index": 0, **choice, "logprobs": None, "finish_reason": finish_reason}
        return {**self._same, "object": kind, "choices": [choice], **usage}


class ChatForm(Form):
    id_prefix, whole_object, piece_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def delta(self, text: str) -> Json:
        return {"delta": {"content": text}}

    def last_delta(self) -> Json:
        return {"delta": {}}

    def choice(self, text: str) -> Json:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def opening(self) -> bytes:
        first = self._piece({"delta": {"role": "assistant", "content": ""}}, None)
        return event(orjson.dumps(first))


class CompletionForm(Form):
    id_prefix, whole_object, piece_object = "cmpl", "text_completion", "text_completion"

    def delta(self, text: str) -> Json:
        return {"text": text}

    choice = delta
