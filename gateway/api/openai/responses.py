"""Writes the responses of OpenAI's text routes, whole or as chunks."""

import time
from typing import Any

import orjson

from gateway.api.event_streams import event, one_line
from gateway.api.openai.generation import Generation

Json = dict[str, Any]
_PLACEHOLDER = "\N{SYMBOL FOR NULL}tidegate\N{SYMBOL FOR NULL}"  # for the text of a chunk


class ResponseWriter:
    """What the routes have in common; a subclass defines how a text is wrapped."""

    id_prefix = whole_object = chunk_object = ""

    def __init__(self, request_id: str, model: str, include_usage: bool) -> None:
        identifier = f"{self.id_prefix}-{request_id}"
        self._common = {"id": identifier, "created": int(time.time()), "model": model}
        self._include_usage = include_usage
        # Chunks are frequent: everything but their text is serialised once.
        template = event(orjson.dumps(self._chunk(self.delta(_PLACEHOLDER), None)))
        self._before, self._after = template.split(orjson.dumps(_PLACEHOLDER))

    def delta(self, text: str) -> Json:
        raise NotImplementedError

    def choice(self, text: str) -> Json:
        raise NotImplementedError

    def opening(self) -> bytes:
        """Events before the text."""
        return b""

    def piece(self, text: str) -> bytes:
        """The event for a piece of text."""
        return self._before + one_line(orjson.dumps(text)) + self._after

    def closing(self, generation: Generation) -> bytes:
        """Events after the text: why it ended and, if requested, its usage."""
        chunks = [self._chunk(self.last_delta(), generation.finish_reason)]
        if self._include_usage:
            chunks.append({**self._chunk({}, None), "choices": [], "usage": generation.usage})
        return b"".join(event(orjson.dumps(chunk)) for chunk in chunks)

    def last_delta(self) -> Json:
        return self.delta("")

    def whole(self, text: str, generation: Generation) -> Json:
        """The whole response, not streamed."""
        return self._object(
            self.whole_object,
            self.choice(text),
            generation.finish_reason,
            usage=generation.usage,
        )

    def _chunk(self, delta: Json, finish_reason: str | None) -> Json:
        usage = {"usage": None} if self._include_usage else {}
        return self._object(self.chunk_object, delta, finish_reason, **usage)

    def _object(
        self, object_type: str, choice: Json, finish_reason: str | None, **usage: Any
    ) -> Json:
        choice = {"index": 0, **choice, "logprobs": None, "finish_reason": finish_reason}
        return {**self._common, "object": object_type, "choices": [choice], **usage}


class ChatWriter(ResponseWriter):
    id_prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def delta(self, text: str) -> Json:
        return {"delta": {"content": text}}

    def last_delta(self) -> Json:
        return {"delta": {}}

    def choice(self, text: str) -> Json:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def opening(self) -> bytes:
        chunk = self._chunk({"delta": {"role": "assistant", "content": ""}}, None)
        return event(orjson.dumps(chunk))


class CompletionWriter(ResponseWriter):
    id_prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def delta(self, text: str) -> Json:
        return {"text": text}

    choice = delta
