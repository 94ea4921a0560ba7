"""What every peer serves: text -> ids -> the same model.onnx -> vector. One thread per process."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

PROCESSES = 2  # as many for each peer as our engine has instances
PORT = int(os.environ.get("BENCH_PORT", "0"))


class MiniLM:
    """Pads to the longest of the batch, which is cheapest with no other requests to merge with."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model, self._tokenizer = os.environ["BENCH_MODEL"], _tokenizer()
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        rows = [self._tokenizer.encode(text).ids for text in texts]
        ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask}
        vectors: list[list[float]] = self._session.run(["sentence_embedding"], feeds)[0].tolist()
        return vectors


def _tokenizer() -> Any:
    tokenizer = Tokenizer.from_file(os.environ["BENCH_TOKENIZER"])
    tokenizer.no_padding()
    return tokenizer
