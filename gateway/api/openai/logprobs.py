"""Log-probabilities, from the JSON of Triton's vLLM backend to OpenAI's.

Per token the backend sends ``{token id: {"logprob", "rank", "decoded_token"}}``: the most likely
ones, and the sampled one too if it is not among them.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

LEAST = -9999.0  # for a probability of zero, as vLLM's own server has it
_CUT = "\N{REPLACEMENT CHARACTER}"  # a token with a part of a character decodes to this


class Candidate(NamedTuple):
    """``data`` is the token's UTF-8; None if it is part of a character and therefore unknown."""

    token: str
    logprob: float
    data: bytes | None


class TokenLogprob(NamedTuple):
    """The token that was sampled, and the most likely ones, these in order."""

    token: str
    logprob: float
    data: bytes
    top: tuple[Candidate, ...]

    @property
    def characters(self) -> int:
        """How many characters begin in this token."""
        return sum(byte & 0xC0 != 0x80 for byte in self.data)


class LogprobReader:
    """Reads the entries of one text; ``top`` of them are reported per token.

    The bytes of all tokens are together the text: those of a character that several tokens form
    are taken from the text, which has it with the last of them. One byte belongs to each if there
    are as many, else all to the last.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._text = ""  # that no token accounts for yet
        self._owed = 0  # characters of tokens whose text has not arrived
        self._waiting: list[tuple[Candidate, tuple[Candidate, ...]]] = []

    def feed(self, raw: bytes, text: str) -> list[TokenLogprob]:
        """The tokens that are complete after a response. Raises ValueError for what is not the
        backend's JSON."""
        late = min(self._owed, len(text))
        self._owed -= late
        self._text += text[late:]
        entries = json.loads(raw) if raw else None
        self._waiting.extend(self._entry(entry) for entry in entries or ())
        return self._complete(is_last=False)

    def end(self) -> list[TokenLogprob]:
        return self._complete(is_last=True)

    def _entry(self, entry: dict[str, dict[str, Any]]) -> tuple[Candidate, tuple[Candidate, ...]]:
        ranked = list(entry.values())
        sampled = ranked[0]
        if len(ranked) > self._top:  # the one that is there although it is none of the top
            sampled = max(ranked, key=lambda candidate: int(candidate.get("rank") or 0))
        ranked.sort(key=lambda candidate: -float(candidate["logprob"]))
        return _candidate(sampled), tuple(map(_candidate, ranked[: self._top]))

    def _complete(self, is_last: bool) -> list[TokenLogprob]:
        complete: list[TokenLogprob] = []
        while self._waiting:
            sampled, top = self._waiting[0]
            if sampled.data:
                length = len(sampled.data.decode("utf-8", "replace"))
                self._owed += max(0, length - len(self._text))
                self._text = self._text[length:]
                complete.append(TokenLogprob(sampled.token, sampled.logprob, sampled.data, top))
                del self._waiting[0]
                continue
            cut = next(
                (at for at, (other, _) in enumerate(self._waiting) if other.data),
                len(self._waiting),
            )
            if cut < len(self._waiting):
                end = self._text.find(self._waiting[cut][0].token)
                character = self._text[: max(0, end)]
            elif self._text or is_last:
                character = self._text
            else:
                break  # the character is not complete
            self._text = self._text[len(character) :]
            complete += _shared(self._waiting[:cut], character.encode())
            del self._waiting[:cut]
        return complete


def _candidate(entry: dict[str, Any]) -> Candidate:
    token = entry.get("decoded_token") or ""
    data = None if _CUT in token or not token else token.encode("utf-8", "replace")
    return Candidate(token, max(float(entry["logprob"]), LEAST), data)


def _shared(
    tokens: Sequence[tuple[Candidate, tuple[Candidate, ...]]], data: bytes
) -> list[TokenLogprob]:
    """The tokens that together form ``data``."""
    last = len(tokens) - 1
    if len(data) == len(tokens):
        parts = [data[at : at + 1] for at in range(len(tokens))]
    else:
        parts = [data if at == last else b"" for at in range(len(tokens))]
    return [
        TokenLogprob(sampled.token, sampled.logprob, part, top)
        for (sampled, top), part in zip(tokens, parts, strict=True)
    ]


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """``choices[].logprobs`` of chat completions."""
    content = [
        {
            **_entry(token.token, token.logprob, token.data),
            "top_logprobs": [_entry(*candidate) for candidate in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(token: str, logprob: float, data: bytes | None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": None if data is None else list(data)}


def completion_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """``choices[].logprobs`` of completions; the first token is at character ``offset``."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += token.characters
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            {token.token: token.logprob, **{other.token: other.logprob for other in token.top}}
            for token in tokens
        ],
        "text_offset": offsets,
    }
