"""Tokens as text, piece by piece: no broken character and no part of a stop string is sent."""

import codecs
from collections.abc import Collection, Mapping


class TextPieces:
    """The text of one sequence. Bytes of a character whose end is missing are held back, and so is
    what may be the start of a stop string, until it is known not to be one.

    ``stopped`` is set when a stop string was found; nothing is added after that.
    """

    def __init__(
        self, stops: Collection[str], include_stop: bool = False, min_tokens: int = 0
    ) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._free = min_tokens  # so many tokens are not searched
        self._held = ""
        self.stopped = False

    def add(self, token: bytes) -> str:
        """The text that may be sent now."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(token)
        if self._free > 0:
            self._free -= 1
            text, self._held = self._held, ""
            return text
        return self._searched()

    def end(self) -> str:
        """What was held back, if no stop string was found."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(b"", final=True)
        text = self._searched()
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _searched(self) -> str:
        matches = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if matches:
            at, stop = min(matches)
            self.stopped = True
            text, self._held = self._held[: at + len(stop) * self._include_stop], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest start of ``stop`` that ``text`` ends with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def is_byte_level(tokens: Mapping[int, bytes], identifiers: Collection[int], text: str) -> bool:
    """Whether the tokens of ``text``, joined, are its UTF-8."""
    return b"".join(tokens.get(identifier, b"") for identifier in identifiers) == text.encode()
