"""Writes the responses of OpenAI's text routes, whole or as chunks."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from gateway.api.event_streams import DONE, event, one_line
from gateway.api.openai.generation import GenerationRequest, Piece, TokenCounts
from gateway.api.openai.logprobs import TokenLogprob, chat_logprobs, completion_logprobs
from gateway.api.openai.output_parsers import CallDelta, Delta, joined

Json = dict[str, Any]
_PLACEHOLDER = "\N{SYMBOL FOR NULL}tidegate\N{SYMBOL FOR NULL}"  # for the text of a chunk


class Writer(Protocol):
    """Writes one response, from the pieces of its choices in the order in which they arrive."""

    def piece(self, piece: Piece) -> bytes:
        """The events for a piece of a choice; none if it adds nothing."""
        ...

    def closing(self, counts: TokenCounts) -> bytes:
        """The events after those of all choices."""
        ...

    def failed(self, error: bytes) -> bytes:
        """The last event of a stream that failed; ``error`` is OpenAI's error object, as JSON."""
        ...

    def whole(self, pieces: Sequence[Piece], counts: TokenCounts) -> Json:
        """The whole response, not streamed."""
        ...


class ResponseWriter:
    """What chat and completions have in common; a subclass defines how a text is wrapped."""

    id_prefix = whole_object = chunk_object = ""

    def __init__(self, request_id: str, model: str, request: GenerationRequest) -> None:
        identifier = f"{self.id_prefix}-{request_id}"
        self._common = {"id": identifier, "created": int(time.time()), "model": model}
        self._include_usage, self._n = request.include_usage, request.n
        self._prompts = request.prompts
        self._opened = [False] * request.choices
        self._sent = [len(request.prompts[at // self._n].echo) for at in range(request.choices)]
        # Chunks are frequent: everything but their text is serialised once.
        self._templates = [self._template(choice) for choice in range(request.choices)]

    def _template(self, choice: int) -> tuple[bytes, bytes]:
        chunk = self._chunk(choice, self.delta(Delta(_PLACEHOLDER)), None)
        before, after = event(orjson.dumps(chunk)).split(orjson.dumps(_PLACEHOLDER))
        return before, after

    def delta(self, delta: Delta) -> Json:
        """The fields of a choice that a piece adds to it."""
        raise NotImplementedError

    def first(self, choice: int) -> bytes:
        """Events before those of a choice."""
        raise NotImplementedError

    def choice(self, delta: Delta) -> Json:
        """The fields of a whole choice."""
        raise NotImplementedError

    def logprobs(self, choice: int, tokens: Sequence[TokenLogprob]) -> Json:
        raise NotImplementedError

    def piece(self, piece: Piece) -> bytes:
        choice, delta, tokens, reason = piece
        opening = b""
        if not self._opened[choice]:
            if not (reason or tokens or any(delta)):
                return b""
            self._opened[choice] = True
            opening = self.first(choice)
            echo = self._prompts[choice // self._n].echo
            if echo:
                delta = delta._replace(content=echo + delta.content)
        if delta.content and not (tokens or reason or delta.reasoning or delta.calls):
            before, after = self._templates[choice]
            return opening + before + one_line(orjson.dumps(delta.content)) + after
        chunks = []
        if tokens or any(delta):
            chunks.append(self._chunk(choice, self.delta(delta), None, tokens))
        if reason:
            chunks.append(self._chunk(choice, self.delta(Delta()), reason))
        return opening + b"".join(event(orjson.dumps(chunk)) for chunk in chunks)

    def closing(self, counts: TokenCounts) -> bytes:
        """The usage, if requested, and ``[DONE]``."""
        if not self._include_usage:
            return DONE
        chunk = {**self._chunk(0, {}, None), "choices": [], "usage": counts.usage}
        return event(orjson.dumps(chunk)) + DONE

    def failed(self, error: bytes) -> bytes:
        return event(error)

    def whole(self, pieces: Sequence[Piece], counts: TokenCounts) -> Json:
        choices = []
        for index in range(len(self._opened)):
            own = [piece for piece in pieces if piece.choice == index]
            tokens = [token for piece in own for token in piece.logprobs]
            delta = joined(*(piece.delta for piece in own))
            delta = delta._replace(content=self._prompts[index // self._n].echo + delta.content)
            reason = own[-1].finish_reason if own else "stop"
            choices.append(self._choice(index, self.choice(delta), reason, tokens))
        return {
            **self._common,
            "object": self.whole_object,
            "choices": choices,
            "usage": counts.usage,
        }

    def _chunk(
        self, index: int, choice: Json, reason: str | None, tokens: Sequence[TokenLogprob] = ()
    ) -> Json:
        usage = {"usage": None} if self._include_usage else {}
        choices = [self._choice(index, choice, reason, tokens)]
        return {**self._common, "object": self.chunk_object, "choices": choices, **usage}

    def _choice(
        self, index: int, choice: Json, reason: str | None, tokens: Sequence[TokenLogprob]
    ) -> Json:
        logprobs = self.logprobs(index, tokens) if tokens else None
        return {"index": index, **choice, "logprobs": logprobs, "finish_reason": reason}


class ChatWriter(ResponseWriter):
    id_prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def delta(self, delta: Delta) -> Json:
        fields: Json = {}
        if delta.content:
            fields["content"] = delta.content
        if delta.reasoning:
            # vLLM and its clients call it by the first name, most others by the second.
            fields["reasoning"] = fields["reasoning_content"] = delta.reasoning
        if delta.calls:
            fields["tool_calls"] = list(map(_call_delta, delta.calls))
        return {"delta": fields}

    def first(self, choice: int) -> bytes:
        delta = {"delta": {"role": "assistant", "content": ""}}
        return event(orjson.dumps(self._chunk(choice, delta, None)))

    def choice(self, delta: Delta) -> Json:
        message: Json = {"role": "assistant", "content": delta.content, "refusal": None}
        if delta.reasoning:
            message["reasoning"] = message["reasoning_content"] = delta.reasoning
        if delta.calls:
            message["content"] = delta.content or None
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": _function(call)}
                for call in delta.calls
            ]
        return {"message": message}

    def logprobs(self, choice: int, tokens: Sequence[TokenLogprob]) -> Json:
        return chat_logprobs(tokens)


class CompletionWriter(ResponseWriter):
    id_prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def delta(self, delta: Delta) -> Json:
        return {"text": delta.content}

    choice = delta

    def first(self, choice: int) -> bytes:
        return b""

    def logprobs(self, choice: int, tokens: Sequence[TokenLogprob]) -> Json:
        logprobs = completion_logprobs(tokens, self._sent[choice])
        self._sent[choice] += sum(token.characters for token in tokens)
        return logprobs


def _call_delta(call: CallDelta) -> Json:
    if not call.id:
        return {"index": call.position, "function": {"arguments": call.arguments}}
    return {
        "index": call.position,
        "id": call.id,
        "type": "function",
        "function": _function(call),
    }


def _function(call: CallDelta) -> Json:
    return {"name": call.name, "arguments": call.arguments}
