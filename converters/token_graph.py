"""A converted text graph, run by ONNX Runtime with the original's own tokenizer file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class TokenGraph:
    """``answer`` is the graph's first output: FP32 [n, width], or [n, length, width] where every
    token has an answer of its own."""

    def __init__(self, engine: Path, tokenizer: Path, max_tokens: int, pad_id: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        self._session = onnxruntime.InferenceSession(
            str(engine), options, providers=["CPUExecutionProvider"]
        )
        self._pad_id = pad_id
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def answer(self, texts: Sequence[str], length: int | None = None) -> list[np.ndarray]:
        """One array a text, from a single batch padded to ``length`` tokens; what was answered for
        padding is cut off."""
        rows = [self._tokenizer.encode(text).ids for text in texts]
        width = max(length or 0, *map(len, rows))
        ids = np.full((len(rows), width), self._pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        answers = self.run(ids, mask)
        return [each[: len(row)] if each.ndim > 1 else each for each, row in zip(answers, rows)]  # noqa: B905 - a wrong number of rows is for the checks to find

    def run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        feed = {"input_ids": ids, "attention_mask": mask}
        return np.asarray(self._session.run(None, feed)[0])

    def takes(self, text: str) -> bool:
        """Whether the model takes the text whole."""
        return not self._tokenizer.encode(text).overflowing

    def length(self, text: str) -> int:
        return len(self._tokenizer.encode(text).ids)
