"""Writes the responses of ``/v1/responses``, whole or as OpenAI's typed events.

What the model says becomes items: its reasoning, its text and each of its calls, in the order in
which they begin. A response that is not streamed is what the events' last one holds.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson

from gateway.api.event_streams import one_line
from gateway.api.openai.generation import GenerationRequest, Piece, TokenCounts
from gateway.api.openai.logprobs import TokenLogprob, chat_logprobs
from gateway.api.openai.output_parsers import CallDelta

Json = dict[str, Any]
ItemType = Literal["reasoning", "message", "function_call"]
# type of an item -> how its ids begin, and the names of the events of its text
_ITEM_TYPES: dict[ItemType, tuple[str, str]] = {
    "reasoning": ("rs", "response.reasoning_text"),
    "message": ("msg", "response.output_text"),
    "function_call": ("fc", "response.function_call_arguments"),
}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
# Fields of a request that its response repeats, and what they are if they were not sent.
_REPEATED: Json = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "safety_identifier": None,
    "prompt_cache_key": None,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
_FIXED: Json = {
    "background": False,
    "error": None,
    "max_tool_calls": None,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": False,
}


class ResponsesWriter:
    def __init__(
        self, request_id: str, model: str, request: GenerationRequest, body: Mapping[str, Any]
    ) -> None:
        may_call_several = request.tools is None or request.tools.choice == "auto"
        self._common: Json = {
            "id": f"resp_{request_id}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            **_FIXED,
            **{name: body.get(name, value) for name, value in _REPEATED.items()},
            "text": {**_REPEATED["text"], **body.get("text", {})},
            "parallel_tool_calls": body.get("parallel_tool_calls", may_call_several),
        }
        self._sent = 0  # events
        self._items: list[_Item] = []  # the last one is open until another begins
        self._reason = "stop"

    def piece(self, piece: Piece) -> bytes:
        _, delta, tokens, reason = piece
        if not (tokens or reason or any(delta)):
            return b""
        events = [] if self._sent else [self._begin()]
        if delta.reasoning:
            events.append(self._add("reasoning", delta.reasoning))
        if delta.content or tokens:
            events.append(self._add("message", delta.content, tokens))
        events += map(self._call, delta.calls)
        if reason:
            self._reason = reason
            if not self._items:
                events.append(self._add("message", ""))
            events.append(self._close("incomplete" if reason in _INCOMPLETE else "completed"))
        return b"".join(events)

    def closing(self, counts: TokenCounts) -> bytes:
        response = self._response(counts)
        return self._event(f"response.{response['status']}", response=response)

    def failed(self, error: bytes) -> bytes:
        """OpenAI's ``error`` event. It holds the error object too, which stock clients raise."""
        document = orjson.loads(error)
        fields = {name: document["error"].get(name) for name in ("code", "message", "param")}
        return self._event("error", **fields, **document)

    def whole(self, pieces: Sequence[Piece], counts: TokenCounts) -> Json:
        for piece in pieces:
            self.piece(piece)
        return self._response(counts)

    def _response(self, counts: TokenCounts) -> Json:
        reason = _INCOMPLETE.get(self._reason)
        return {
            **self._common,
            "status": "incomplete" if reason else "completed",
            "incomplete_details": {"reason": reason} if reason else None,
            "completed_at": None if reason else int(time.time()),
            "output": [item.document for item in self._items],
            "usage": _usage(counts),
        }

    def _begin(self) -> bytes:
        response = {
            **self._common,
            "status": "in_progress",
            "incomplete_details": None,
            "completed_at": None,
            "output": [],
            "usage": None,
        }
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _add(self, kind: ItemType, text: str, tokens: Sequence[TokenLogprob] = ()) -> bytes:
        """A piece of the reasoning or of the text."""
        is_open = bool(self._items) and self._items[-1].kind == kind
        opening = b"" if is_open else self._open(_Item(kind))
        if not (text or tokens):
            return opening
        item = self._items[-1]
        item.texts.append(text)
        logprobs: Json = {}
        if kind == "message":
            entries = chat_logprobs(tokens)["content"] if tokens else []
            item.logprobs += entries
            logprobs["logprobs"] = entries
        return opening + self._of_item(
            f"{item.stem}.delta", content_index=0, delta=text, **logprobs
        )

    def _call(self, call: CallDelta) -> bytes:
        """A piece of a call; one with an id begins it."""
        opening = self._open(_Item("function_call", call.name, call.id)) if call.id else b""
        if not call.arguments:
            return opening
        item = self._items[-1]
        item.texts.append(call.arguments)
        return opening + self._of_item(f"{item.stem}.delta", delta=call.arguments)

    def _open(self, item: "_Item") -> bytes:
        """Events that end the item before this one and begin this one."""
        events = [self._close("completed")] if self._items else []
        self._items.append(item)
        events.append(
            self._event(
                "response.output_item.added",
                output_index=len(self._items) - 1,
                item=item.document,
            )
        )
        if item.kind != "function_call":
            events.append(
                self._of_item("response.content_part.added", content_index=0, part=item.part)
            )
        return b"".join(events)

    def _close(self, status: str) -> bytes:
        item = self._items[-1]
        item.end(status)
        if item.kind == "function_call":
            ends = self._of_item(f"{item.stem}.done", name=item.name, arguments=item.text)
        else:
            logprobs: Json = {"logprobs": item.logprobs} if item.kind == "message" else {}
            ends = self._of_item(
                f"{item.stem}.done", content_index=0, text=item.text, **logprobs
            ) + self._of_item("response.content_part.done", content_index=0, part=item.part)
        return ends + self._event(
            "response.output_item.done", output_index=len(self._items) - 1, item=item.document
        )

    def _of_item(self, kind: str, **fields: Any) -> bytes:
        """An event of the item that is open."""
        at = len(self._items) - 1
        return self._event(kind, item_id=self._items[at].id, output_index=at, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        document = orjson.dumps({"type": kind, "sequence_number": self._sent, **fields})
        self._sent += 1
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), one_line(document))


class _Item:
    """An item of the output, as far as the model has come."""

    def __init__(self, kind: ItemType, name: str = "", call_id: str = "") -> None:
        prefix, self.stem = _ITEM_TYPES[kind]
        self.kind, self.name, self.call_id = kind, name, call_id
        self.id = f"{prefix}_{secrets.token_hex(12)}"
        self.texts: list[str] = []
        self.logprobs: list[Json] = []
        self._status = "in_progress"

    def end(self, status: str) -> None:
        """A call whose arguments are whole is complete, whatever ended the text after it."""
        is_whole_call = self.kind == "function_call" and _is_json(self.text)
        self._status = "completed" if is_whole_call else status

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def part(self) -> Json:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": self.logprobs,
        }

    @property
    def document(self) -> Json:
        fields: Json = {"id": self.id, "type": self.kind, "status": self._status}
        if self.kind == "function_call":
            return {
                **fields,
                "call_id": self.call_id,
                "name": self.name,
                "arguments": self.text,
            }
        content = [] if self._status == "in_progress" else [self.part]
        if self.kind == "reasoning":
            return {**fields, "summary": [], "content": content}
        return {**fields, "role": "assistant", "content": content}


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _usage(counts: TokenCounts) -> Json | None:
    """None if the model does not count. The details are integers to OpenAI's clients: 0 is also
    what a model that does not count them has."""
    usage = counts.usage
    if usage is None:
        return None
    cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
