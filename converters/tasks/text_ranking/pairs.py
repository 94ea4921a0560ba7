"""A pair of texts as one sample, and its tokens.

Samples are texts everywhere in a proof, so a pair is written as one: the query, a separator that no
text has (the ASCII unit separator), and the passage.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tokenizers import Tokenizer

from converters.proof.runner import OpenRunner, onnx_runner
from converters.proof.token_graph import TokenGraph

SEPARATOR = "\N{INFORMATION SEPARATOR ONE}"
TYPES = "token_type_ids"


def joined(query: str, passage: str) -> str:
    """The pair as one sample."""
    return f"{query}{SEPARATOR}{passage.replace(SEPARATOR, ' ')}"


def parts(pair: str) -> tuple[str, str]:
    """Query and passage."""
    query, _, passage = pair.partition(SEPARATOR)
    return query, passage


class PairTokenizer:
    """A tokenizer whose texts are pairs; too long ones lose tokens from the longer of the two."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    def encode(self, pair: str) -> Any:
        return self._tokenizer.encode(*parts(pair))

    def get_vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())


class PairGraph(TokenGraph):
    """A converted graph whose texts are pairs, behind the original's own tokenizer file."""

    samples: ClassVar[str] = "pairs"

    def __init__(
        self,
        engine: Path,
        tokenizer: Path,
        max_tokens: int,
        pad_id: int = 0,
        runner: OpenRunner = onnx_runner,
        *,
        has_types: bool = False,
    ) -> None:
        super().__init__(engine, tokenizer, max_tokens, pad_id, runner)
        self._tokenizer: Any = PairTokenizer(self._tokenizer)
        self._has_types = has_types

    def feed(self, texts: Sequence[str], length: int | None = None) -> dict[str, np.ndarray]:
        """With the types: 0 for the query's tokens, 1 for the passage's."""
        feed = super().feed(texts, length)
        if self._has_types:
            feed[TYPES] = np.zeros_like(feed["input_ids"])
            for row, text in zip(feed[TYPES], texts, strict=True):
                types = self._tokenizer.encode(text).type_ids
                row[: len(types)] = types
        return feed

    def run(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        token_type_ids: np.ndarray | None = None,
    ) -> np.ndarray:
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._has_types:
            types = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            feed[TYPES] = types
        return self._output(feed)
