"""A converted text graph behind the original's own tokenizer file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from tokenizers import Tokenizer

from converters.errors import ProofFailed
from converters.proof.runner import OpenRunner, onnx_runner


class TokenGraph:
    """``infer`` returns the graph's first output: FP32 [n, width], or [n, length, width] where
    there is an output for every token."""

    samples: ClassVar[str] = "texts"  # what they are called

    def __init__(
        self,
        engine: Path,
        tokenizer: Path,
        max_tokens: int,
        pad_id: int = 0,
        runner: OpenRunner = onnx_runner,
    ) -> None:
        try:
            self._session = runner(engine)
        except Exception as error:  # the runtimes' errors share no base class
            reason = " ".join(str(error).split())[:300]
            raise ProofFailed(f"the graph cannot be loaded: {reason}") from error
        self._pad_id = pad_id
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def infer(self, texts: Sequence[str], length: int | None = None) -> list[np.ndarray]:
        """One array per text, from a single batch padded to ``length`` tokens; the output for
        padding is cut off."""
        outputs = self.run(**self.feed(texts, length))
        counts = [self.length(text) for text in texts]
        # Not strict: the checks report a wrong number of rows.
        return [
            output[:count] if output.ndim > 1 else output
            for output, count in zip(outputs, counts, strict=False)
        ]

    def feed(self, texts: Sequence[str], length: int | None = None) -> dict[str, np.ndarray]:
        """The graph's inputs INT64 [n, width], at least ``length`` wide."""
        rows = [self._tokenizer.encode(text).ids for text in texts]
        width = max(length or 0, *map(len, rows))
        ids = np.full((len(rows), width), self._pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """The graph's first output, of any shape; ProofFailed when the graph does not run."""
        return self._output({"input_ids": input_ids, "attention_mask": attention_mask})

    def _output(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        try:
            return np.asarray(self._session.run(None, feed)[0])
        except Exception as error:  # the runtimes' errors share no base class
            rows, length = feed["input_ids"].shape
            reason = " ".join(str(error).split())[:300]
            raise ProofFailed(
                f"the graph does not run on {rows} {self.samples} of {length} tokens: {reason}"
            ) from error

    def length(self, text: str) -> int:
        """Tokens in the text, special tokens included."""
        return len(self._tokenizer.encode(text).ids)


def text_of_tokens(texts: Sequence[str], tokens: Callable[[str], int], limit: int) -> str:
    """A real text of almost ``limit`` tokens: the texts joined, repeated where they are too few,
    and cut to the longest prefix of at most ``limit`` tokens. "" when no prefix is that short.
    ``tokens`` counts a text's tokens."""
    joined = " ".join(texts)
    while tokens(joined) <= limit:
        joined = f"{joined} {joined}"
    fits, too_long = 0, len(joined)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if tokens(joined[:middle]) <= limit:
            fits = middle
        else:
            too_long = middle
    return joined[:fits].strip()
