"""The model's text as an answer: its stops, its reasoning, its tool calls.

However the text is cut into pieces, what comes out is the same. Every parser takes linear time; a
tool call is held in memory until it is complete, up to ``MAX_CALL`` characters.
"""

import json
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import orjson

MAX_CALL = 128 * 1024
MAX_QUOTED = 8  # end tags within the strings of a call
CALL_START, CALL_END = "<tool_call>", "</tool_call>"
_BEYOND_64_BITS = re.compile(r"[0-9]{19}")  # a number that may be
_ARGUMENTS = ("arguments", "parameters")  # of a call: what Hermes' models write, and Llama's


class CallDelta(NamedTuple):
    """A piece of one tool call; the first of a call has its ``id`` and ``name``."""

    position: int
    arguments: str
    id: str = ""
    name: str = ""


class Delta(NamedTuple):
    """What a piece of text adds to the answer."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()


class Parser(Protocol):
    @property
    def has_ended(self) -> bool:
        """Whether the answer is complete, whatever else the model writes."""
        ...

    def feed(self, text: str) -> Delta: ...

    def end(self) -> Delta:
        """What was held back, once the model has ended."""
        ...


def _partial(text: str, tags: Sequence[str]) -> int:
    """The length of the longest end of the text that a tag begins with, shorter than the tag."""
    longest = min(len(text), max(map(len, tags), default=1) - 1)
    for length in range(longest, 0, -1):
        tail = text[-length:]
        if any(tag.startswith(tail) for tag in tags):
            return length
    return 0


class StopFilter:
    """Passes text up to the first stop; holds back what may turn out to be the start of one.

    Applied by us too: not every model applies stops, and one may span two pieces. Of several stops
    the one that is complete first counts, as it does for a model that writes token by token.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._pending = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The text that can be sent now; after a stop, none."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        text = self._pending + text
        matches = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            self.stopped, self._pending = True, ""
            return text[: min(matches)[1]]
        end = len(text) - _partial(text, self._stops)
        self._pending = text[end:]
        return text[:end]

    def rest(self) -> str:
        """The text held back, once the model has ended."""
        pending, self._pending = self._pending, ""
        return pending


class Plain:
    """All text is content."""

    has_ended = False

    def feed(self, text: str) -> Delta:
        return Delta(text)

    def end(self) -> Delta:
        return Delta()


class HermesCalls:
    """Content, with calls as ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

    White space around calls is dropped. What looks like a call and is none stays content. With
    ``single``, the first call ends the answer.
    """

    def __init__(self, single: bool = False) -> None:
        self._single = single
        self.has_ended = False
        self._pending = ""  # may become a tag
        self._space = ""  # white space that is content only if other content follows
        self._holds_space = True  # at the beginning and after a call
        self._call: list[str] | None = None  # pieces of the call that has begun
        self._length = 0  # of these
        self._quoted = 0  # end tags among these, in a string of the arguments
        self._count = 0

    def feed(self, text: str) -> Delta:
        content: list[str] = []
        calls: list[CallDelta] = []
        self._read(text, content, calls)
        return Delta("".join(content), "", tuple(calls))

    def _read(self, text: str, content: list[str], calls: list[CallDelta]) -> None:
        text, self._pending = self._pending + text, ""
        while text and not self.has_ended:
            tag = CALL_START if self._call is None else CALL_END
            before, separator, rest = text.partition(tag)
            if not separator:
                end = len(text) - _partial(text, (tag,))
                before, self._pending = text[:end], text[end:]
            if self._call is None:
                content.append(self._content(before))
                if separator:
                    self._call, self._length, self._quoted = [], 0, 0
            else:
                self._inside(self._call, before, content)
                if separator:
                    rest = self._close(CALL_END, content, calls) + rest
            text = rest

    def end(self) -> Delta:
        content: list[str] = []
        calls: list[CallDelta] = []
        pending, self._pending = self._pending, ""
        while self._call is not None:
            self._inside(self._call, pending, content)
            self._read(self._close("", content, calls), content, calls)
            pending, self._pending = self._pending, ""
        content.append(self._content(pending))
        if not self._count:
            content.append(self._space)
        return Delta("".join(content), "", tuple(calls))

    def _inside(self, call: list[str], text: str, content: list[str]) -> None:
        """Text of the call that has begun; one that is too long is content from its start."""
        fitted = self._length <= MAX_CALL
        self._length += len(text)
        if self._length <= MAX_CALL:
            call.append(text)
            return
        content.append(self._content(CALL_START + "".join(call) + text if fitted else text))

    def _close(self, end: str, content: list[str], calls: list[CallDelta]) -> str:
        """The call that has begun is complete, unless its end tag is part of a string; one that
        cannot be read is content. Returns text that is to be read again."""
        raw, pieces, self._call = "".join(self._call or ()), self._call, None
        if self._length > MAX_CALL:
            content.append(self._content(end))
            return ""
        call = read_call(raw)
        if call is None and end and self._quoted < MAX_QUOTED and _ends_in_string(raw):
            self._call, self._quoted = pieces, self._quoted + 1
            self._inside(pieces or [], end, content)
            return ""
        if call is None:
            raw, quoted, rest = raw.partition(CALL_END)
            content.append(self._content(CALL_START + raw + (quoted or end)))
            return rest + end if quoted else ""
        name, arguments = call
        self._space, self._holds_space = "", True
        calls.append(CallDelta(self._count, arguments, new_call_id(), name))
        self._count += 1
        self.has_ended = self._single
        return ""

    def _content(self, text: str) -> str:
        if not self._holds_space or not text:
            return text
        if text.isspace():
            self._space += text
            return ""
        text, self._space, self._holds_space = self._space + text, "", False
        return text


class NamedCall:
    """All text is the arguments of one call: a grammar made the model write these."""

    has_ended = False

    def __init__(self, name: str) -> None:
        self._name = name
        self._has_begun = False

    def feed(self, text: str) -> Delta:
        if not text:
            return Delta()
        if self._has_begun:
            return Delta(calls=(CallDelta(0, text),))
        self._has_begun = True
        return Delta(calls=(CallDelta(0, text, new_call_id(), self._name),))

    def end(self) -> Delta:
        return Delta()


class RequiredCalls:
    """All text is one call or an array of calls, as JSON: a grammar made the model write these.

    A text that was cut off before its end is content.
    """

    has_ended = False

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def feed(self, text: str) -> Delta:
        self._pieces.append(text)
        return Delta()

    def end(self) -> Delta:
        raw = "".join(self._pieces)
        try:
            document = _loads(raw)
        except orjson.JSONDecodeError:
            return Delta(raw)
        items = document if isinstance(document, list) else [document]
        calls = [call for call in map(_call, items) if call]
        if not calls or len(calls) < len(items):
            return Delta(raw)
        return Delta(
            calls=tuple(
                CallDelta(index, arguments, new_call_id(), name)
                for index, (name, arguments) in enumerate(calls)
            )
        )


class ReasoningSplit:
    """The reasoning between two tags at the beginning, and the rest through another parser.

    Line breaks at the beginning of the reasoning and after it are dropped.
    """

    def __init__(self, start: str, end: str, is_open: bool, rest: Parser) -> None:
        self._start, self._end, self._rest = start, end, rest
        self._step: Callable[[str], Delta] = self._inside if is_open else self._before
        self._pending = ""
        self._trims = is_open  # whether line breaks are to be dropped now

    @property
    def has_ended(self) -> bool:
        return self._rest.has_ended

    def feed(self, text: str) -> Delta:
        return self._step(text)

    def end(self) -> Delta:
        pending, self._pending = self._pending, ""
        if self._step == self._inside:
            return Delta(reasoning=pending)
        return following(self._rest.feed(pending), self._rest.end())

    def _before(self, text: str) -> Delta:
        text = self._pending + text
        begun = text.lstrip()
        if begun.startswith(self._start):
            self._pending, self._step, self._trims = "", self._inside, True
            return self._inside(begun[len(self._start) :])
        if self._start.startswith(begun):
            self._pending = text
            return Delta()
        self._pending, self._step = "", self._after
        return self._after(text)

    def _inside(self, text: str) -> Delta:
        text = self._trimmed(self._pending + text)
        reasoning, separator, rest = text.partition(self._end)
        if separator:
            self._pending, self._step, self._trims = "", self._after, True
            return self._after(rest)._replace(reasoning=reasoning)
        end = len(text) - _partial(text, (self._end,))
        self._pending = text[end:]
        return Delta(reasoning=text[:end])

    def _after(self, text: str) -> Delta:
        return self._rest.feed(self._trimmed(text))

    def _trimmed(self, text: str) -> str:
        if self._trims:
            text = text.lstrip("\r\n")
            self._trims = not text
        return text


def joined(*deltas: Delta) -> Delta:
    """The pieces of one text, together; the pieces of each call are one."""
    calls: list[CallDelta] = []
    for delta in deltas:
        for call in delta.calls:
            if call.position == len(calls):
                calls.append(call)
            elif call.position < len(calls):
                begun = calls[call.position]
                calls[call.position] = begun._replace(arguments=begun.arguments + call.arguments)
    content = "".join(delta.content for delta in deltas)
    return Delta(content, "".join(delta.reasoning for delta in deltas), tuple(calls))


def following(first: Delta, second: Delta) -> Delta:
    """Two pieces of one text as one piece of it."""
    return Delta(
        first.content + second.content,
        first.reasoning + second.reasoning,
        (*first.calls, *second.calls),
    )


def read_call(raw: str) -> tuple[str, str] | None:
    """The name and the arguments (JSON text) of a call, None if it is none."""
    try:
        return _call(_loads(raw))
    except orjson.JSONDecodeError:
        return None


def _call(document: Any) -> tuple[str, str] | None:
    if not isinstance(document, dict) or not isinstance(document.get("name"), str):
        return None
    arguments: Any = next((document[key] for key in _ARGUMENTS if key in document), {})
    if isinstance(arguments, str):  # JSON in JSON, as OpenAI has it
        try:
            arguments = _loads(arguments)
        except orjson.JSONDecodeError:
            return None
    if arguments is None:  # of a function that takes none
        arguments = {}
    if not isinstance(arguments, dict):
        return None
    try:
        return document["name"], _dumps(arguments)
    except RecursionError:
        return None


def _loads(raw: str) -> Any:
    """A JSON document, integers of any size included. Raises orjson.JSONDecodeError."""
    document = orjson.loads(raw)  # for what ``json`` takes and is no JSON, too
    if _BEYOND_64_BITS.search(raw):
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):  # over 4,300 digits, 1,000 levels
            pass
    return document


def _dumps(document: Any) -> str:
    """Raises RecursionError for about 1,000 levels."""
    try:
        return orjson.dumps(document).decode()
    except orjson.JSONEncodeError:  # an integer of more than 64 bits, or over 254 levels
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _ends_in_string(raw: str) -> bool:
    """Whether this beginning of a JSON document ends within a string."""
    try:
        json.loads(raw)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except RecursionError:
        pass
    return False


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
