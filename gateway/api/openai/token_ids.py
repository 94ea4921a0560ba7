"""Decodes the token arrays of OpenAI's clients back to the text that the client had.

The vocabulary comes with the package ``bpe-openai`` (an extra: 41 MB to download); it is loaded at
the first array, in a thread, and stays in memory (docs/openai.md has its figures).
"""

import asyncio
import codecs
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.api.openai.token_arrays import are_tokens, refusal
from gateway.errors import InvalidRequest

log = logging.getLogger("gateway")
# OpenAI's own limits: ids of one input, and of all inputs of a request.
MAX_IDS, MAX_ALL_IDS = 8192, 300_000
_LOADED: dict[str, Any] = {}
_LOADING = threading.Lock()


async def decoded(value: Any, vocabulary: str, param: str) -> Any:
    """``value``, an array or a list of texts and arrays, with each array replaced by its text.

    Raises InvalidRequest for ids that are not in the vocabulary, and for a vocabulary that is not
    installed.
    """
    arrays = dict(_arrays(value, param))
    counts = [len(ids) for ids in arrays.values()]
    if max(counts) > MAX_IDS or sum(counts) > MAX_ALL_IDS:
        raise InvalidRequest(
            f"{param!r}: send at most {MAX_IDS} token ids in an input and {MAX_ALL_IDS} in all",
            param=param,
        )
    texts = await asyncio.to_thread(_texts, arrays, vocabulary, param)
    if param in texts:
        return texts[param]
    return [texts.get(f"{param}.{index}", item) for index, item in enumerate(value)]


def _arrays(value: Any, param: str) -> Iterator[tuple[str, Sequence[int]]]:
    """Each array by its path in the body, such as ``input`` or ``input.3``."""
    if are_tokens(value):
        yield param, value
        return
    for index, item in enumerate(value):
        if are_tokens(item):
            yield f"{param}.{index}", item


def _texts(arrays: Mapping[str, Sequence[int]], vocabulary: str, param: str) -> dict[str, str]:
    encoding = _encoding(vocabulary, param)
    return {path: _text(ids, encoding, vocabulary, path) for path, ids in arrays.items()}


def _encoding(vocabulary: str, param: str) -> Any:
    """The encoding; loaded once, however many requests need it at the same time."""
    with _LOADING:
        if vocabulary not in _LOADED:
            try:
                import bpe_openai
            except ImportError:
                raise refusal(
                    param,
                    "this gateway runs without the extra that decodes them (its operator: "
                    "pip install 'tidegate[openai-tokens]')",
                ) from None
            if vocabulary not in bpe_openai.list_encoding_names():
                log.error(
                    "an endpoint schema names the vocabulary %r, which bpe-openai does not have",
                    vocabulary,
                )
                raise refusal(param, "this model's endpoint schema names an unknown vocabulary")
            _LOADED[vocabulary] = bpe_openai.get_encoding(vocabulary)
    return _LOADED[vocabulary]


def _text(ids: Sequence[int], encoding: Any, vocabulary: str, param: str) -> str:
    try:
        if min(ids) < 0:
            raise KeyError
        return _decode(encoding.decode_bytes(ids))
    except KeyError:
        unknown = next(token for token in ids if token < 0 or not _has(encoding, token))
        raise InvalidRequest(
            f"{param!r}: the token id {unknown} is not in the vocabulary {vocabulary}", param=param
        ) from None
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"{param!r}: these token ids are not text in the vocabulary {vocabulary}", param=param
        ) from None


def _has(encoding: Any, token: int) -> bool:
    try:
        encoding.decode_single_token_bytes(token)
    except KeyError:
        return False
    return True


def _decode(raw: bytes) -> str:
    """The text. Clients split a long text between tokens, and so within a character: partial
    characters at either end are dropped."""
    limit = min(3, len(raw))  # bytes of a character after its first
    start = next((index for index in range(limit) if raw[index] & 0xC0 != 0x80), limit)
    return codecs.getincrementaldecoder("utf-8")().decode(raw[start:])
