"""Token arrays of OpenAI's clients: their ids back into the text that the client had.

The vocabulary comes with the package ``bpe-openai`` (an extra: 41 MB to fetch), is loaded at the
first array, in a thread, and stays (docs/openai.md has its figures).
"""

import asyncio
import codecs
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.api.openai.token_inputs import are_tokens, refusal
from gateway.errors import InvalidRequest

log = logging.getLogger("gateway")
# OpenAI's own limits: ids of one input, and of all inputs of a request.
MAX_IDS, MAX_ALL_IDS = 8192, 300_000
_LOADED: dict[str, Any] = {}
_LOADING = threading.Lock()


async def decoded(given: Any, vocabulary: str, param: str) -> Any:
    """``given``, an array or a list of texts and arrays, with text in the place of each array.

    InvalidRequest for ids that the vocabulary has not, and where there is no such vocabulary here.
    """
    arrays = dict(_arrays(given, param))
    counts = [len(ids) for ids in arrays.values()]
    if max(counts) > MAX_IDS or sum(counts) > MAX_ALL_IDS:
        raise InvalidRequest(
            f"{param!r}: at most {MAX_IDS} token ids in an input and {MAX_ALL_IDS} in all: "
            "send less at once",
            param=param,
        )
    texts = await asyncio.to_thread(_texts, arrays, vocabulary, param)
    if param in texts:
        return texts[param]
    return [texts.get(f"{param}.{place}", each) for place, each in enumerate(given)]


def _arrays(given: Any, param: str) -> Iterator[tuple[str, Sequence[int]]]:
    """Each array by its place in the body, such as ``input`` or ``input.3``."""
    if are_tokens(given):
        yield param, given
        return
    for place, each in enumerate(given):
        if are_tokens(each):
            yield f"{param}.{place}", each


def _texts(arrays: Mapping[str, Sequence[int]], vocabulary: str, param: str) -> dict[str, str]:
    encoding = _encoding(vocabulary, param)
    return {where: _text(ids, encoding, vocabulary, where) for where, ids in arrays.items()}


def _encoding(vocabulary: str, param: str) -> Any:
    """Loaded once, however many ask at the same time."""
    with _LOADING:
        if vocabulary not in _LOADED:
            try:
                import bpe_openai
            except ImportError:
                raise refusal(
                    param, "this gateway is without 'tidegate[openai-tokens]' and its vocabularies"
                ) from None
            if vocabulary not in bpe_openai.list_encoding_names():
                log.error(
                    "an endpoint schema names the vocabulary %r: bpe-openai has no such", vocabulary
                )
                raise refusal(param, "this model's endpoint schema names an unknown vocabulary")
            _LOADED[vocabulary] = bpe_openai.get_encoding(vocabulary)
    return _LOADED[vocabulary]


def _text(ids: Sequence[int], encoding: Any, vocabulary: str, param: str) -> str:
    try:
        if min(ids) < 0:
            raise KeyError
        return _read(encoding.decode_bytes(ids))
    except KeyError:
        wrong = next(each for each in ids if each < 0 or not _has(encoding, each))
        raise InvalidRequest(
            f"{param!r}: the token id {wrong} is not in the vocabulary {vocabulary}", param=param
        ) from None
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"{param!r}: these token ids are no text in the vocabulary {vocabulary}", param=param
        ) from None


def _has(encoding: Any, token: int) -> bool:
    try:
        encoding.decode_single_token_bytes(token)
    except KeyError:
        return False
    return True


def _read(raw: bytes) -> str:
    """The text. Clients cut a long one between tokens, and so within a character: the parts of one
    at the ends are left out."""
    most = min(3, len(raw))  # bytes of a character, but for its first
    begin = next((at for at in range(most) if raw[at] & 0xC0 != 0x80), most)
    return codecs.getincrementaldecoder("utf-8")().decode(raw[begin:])
