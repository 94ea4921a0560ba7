"""Where a text to continue goes: to the replica that has computed its beginning before, as long as
that is not much busier than the others.

An engine keeps what it has computed of a prompt (its prefix cache), so the next turn of a
conversation costs a fraction where the last one was. The beginning is known by a chain of hashes of
its blocks, each salted with the tenant: nobody can learn by its latency whether another tenant has
sent a text. What this process has sent nowhere goes anywhere: were the replica computed from the
text, each of many processes, which see their own load alone, would send what everybody sends to the
same one. No replica gets more than ``MOST_SHARE`` times the mean of the work under way (bounded
load): one that is asked by everybody would be slower than an empty one.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import orjson

from gateway.models.catalogue import PROMPT

BLOCK_BYTES = 512  # about 128 tokens of English
MOST_BLOCKS = 64  # of a prompt: what differs later still begins alike
MOST_KNOWN = 65_536  # blocks that are remembered: about 10 MB
MOST_SHARE = 1.25
BYTES_PER_TOKEN = 4  # of English; a guess is enough to compare
SAMPLING, STREAM = "sampling_parameters", "stream"
PROMPT_IDS, ID_BYTES = "prompt_token_ids", 8  # instead of a text, for our own engine
LENGTH_BYTES = 4  # before each element of a BYTES tensor
DEFAULT_TOKENS = 16  # that vLLM generates for a request that does not say
MOST_TOKENS = 4096  # that one text counts for
MOST_SEQUENCES = 16  # of one request; our own engine refuses more


class InferInput(Protocol):
    """A tensor of a ModelInferRequest."""

    name: str


class TextWork(NamedTuple):
    """A text to continue. ``tokens``: about how many it takes, read and generated, at most
    ``MOST_TOKENS`` for each of the ``sequences`` that are generated at a time: nobody makes a
    replica look busy by what is asked for. ``blocks``: the
    hashes of its beginning, each over all that comes before it too; none if it is shorter than a
    block. ``is_stream``: each token is a response."""

    tokens: int
    blocks: tuple[bytes, ...]
    is_stream: bool = False
    sequences: int = 1


def text_work(
    tenant: str,
    prompt: bytes,
    max_tokens: int,
    *,
    is_stream: bool = False,
    token_bytes: int = BYTES_PER_TOKEN,
    sequences: int = 1,
) -> TextWork:
    """
    >>> text_work("shop", b"x" * 1200, 100).tokens
    400
    """
    digest = hashlib.blake2b(tenant.encode() + b"\0", digest_size=16)
    blocks = []
    for end in range(BLOCK_BYTES, min(len(prompt), MOST_BLOCKS * BLOCK_BYTES) + 1, BLOCK_BYTES):
        digest.update(prompt[end - BLOCK_BYTES : end])
        blocks.append(digest.copy().digest())
    tokens = max(1, min(len(prompt) // token_bytes + max_tokens, MOST_TOKENS)) * sequences
    return TextWork(tokens, tuple(blocks), is_stream, sequences)


def text_work_of(
    tenant: str, inputs: Iterable[InferInput], raws: Sequence[bytes | memoryview]
) -> TextWork | None:
    """The work of a request by the contract of Triton's vLLM backend, whose ``raws`` are the bytes
    of its ``inputs``; None if it has no text to continue."""
    raw_of = {
        tensor.name: bytes(raw)
        for tensor, raw in zip(inputs, raws, strict=False)
        if tensor.name in (PROMPT, PROMPT_IDS, SAMPLING, STREAM)
    }
    prompt, token_bytes = raw_of.get(PROMPT, b"")[LENGTH_BYTES:], BYTES_PER_TOKEN
    if PROMPT_IDS in raw_of:
        prompt, token_bytes = raw_of[PROMPT_IDS], ID_BYTES
    elif PROMPT not in raw_of:
        return None
    sampling = _sampling(raw_of.get(SAMPLING, b"")[LENGTH_BYTES:])
    return text_work(
        tenant,
        prompt,
        _positive(sampling.get("max_tokens"), DEFAULT_TOKENS),
        is_stream=raw_of.get(STREAM) == b"\x01",
        token_bytes=token_bytes,
        sequences=min(_positive(sampling.get("n"), 1), MOST_SEQUENCES),
    )


def _sampling(data: bytes) -> Mapping[str, object]:
    """What the request says; what it says wrong is refused elsewhere."""
    try:
        sampling = orjson.loads(data)
    except ValueError:
        return {}
    return sampling if isinstance(sampling, dict) else {}


def _positive(value: object, otherwise: int) -> int:
    return value if type(value) is int and value > 0 else otherwise


class PrefixAffinity:
    """Which replica has computed which beginning of a text, as far as this process sent it."""

    def __init__(self, most_known: int = MOST_KNOWN) -> None:
        self._most_known = most_known
        self._homes: OrderedDict[tuple[str, bytes], str] = OrderedDict()

    def home(self, model: str, work: TextWork, loads: Mapping[str, float]) -> str:
        """The address that gets it, or '' if it may go anywhere. ``loads`` is the work under way by
        the address of each replica that may be asked, in texts like this one."""
        for block in reversed(work.blocks):
            address = self._homes.get((model, block), "")
            if address in loads:
                return address if _has_room(address, loads) else ""
        return ""

    def sent(self, model: str, work: TextWork, address: str) -> None:
        """This replica has continued it, and so has its beginning from now on."""
        for block in work.blocks:
            key = (model, block)
            self._homes[key] = address
            self._homes.move_to_end(key)
        while len(self._homes) > self._most_known:
            self._homes.popitem(last=False)


def _has_room(address: str, loads: Mapping[str, float]) -> bool:
    """Whether it has at most ``MOST_SHARE`` times the mean, with this text under way somewhere."""
    return loads[address] * len(loads) <= MOST_SHARE * (sum(loads.values()) + 1)
