"""Prove a sentence-embedding graph against the original framework's vectors.

The tolerances are those of FP32. Two correct FP32 runs of this model differ by about 2e-7 (the
order of additions); 1e-5 leaves room for other processors and is far below what changes a
neighbour (unit vectors of different sentences differ by 1e-1).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from converters.proof import Check, Proof, at_least, at_most, worst_difference
from converters.samples import text_of_words

ABSOLUTE = 1e-5
COSINE = 0.99999
BATCH_SIZES = (1, 2, 64)
INVARIANCE_SAMPLES = 16


class Graph:
    """The converted graph, run by ONNX Runtime with the original's own tokenizer file."""

    def __init__(self, engine: Path, tokenizer: Path, max_tokens: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        self._session = onnxruntime.InferenceSession(
            str(engine), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def embed(self, texts: Sequence[str], length: int | None = None) -> np.ndarray:
        """Vectors FP32 [n, width] of the texts as one batch, padded to ``length`` tokens."""
        rows = [self._tokenizer.encode(text).ids for text in texts]
        width = max(length or 0, *map(len, rows))
        ids = np.zeros((len(rows), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return self.run(ids, mask)

    def run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        feed = {"input_ids": ids, "attention_mask": mask}
        return np.asarray(self._session.run(None, feed)[0])

    def length(self, text: str) -> int:
        return len(self._tokenizer.encode(text).ids)


def prove(
    subject: str, graph: Graph, texts: list[str], original: np.ndarray, buckets: Sequence[int]
) -> Proof:
    """Every check on these texts, whose original vectors are FP32 [n, width]."""
    got = np.concatenate([graph.embed([text]) for text in texts])
    # Short sentences and, from the end of the list, the texts that reach into every bucket.
    few = [*texts[:INVARIANCE_SAMPLES], *texts[-len(buckets) :]]
    checks = (
        *parity(got, original, texts),
        _batch_invariance(graph, few),
        *(_padding_invariance(graph, few, bucket) for bucket in buckets),
        _dynamic_axes(graph, buckets),
        _determinism(graph, few),
    )
    return Proof(subject, len(texts), checks)


def parity(got: np.ndarray, original: np.ndarray, texts: Sequence[str]) -> list[Check]:
    """The same vectors, and the same nearest neighbour for every text."""
    if got.shape != original.shape:
        return [worst_difference("parity", got, original, ABSOLUTE, texts)]
    cosine = (got * original).sum(axis=1)
    worst = int(cosine.argmin())
    agree = float((_nearest(got) == _nearest(original)).mean())
    return [
        worst_difference("parity: largest difference", got, original, ABSOLUTE, texts),
        at_least("parity: lowest cosine", cosine.min(), COSINE, repr(texts[worst][:60])),
        at_least("task: same nearest neighbour", agree, 1.0),
    ]


def texts_for_buckets(texts: list[str], buckets: Sequence[int]) -> list[str]:
    """Texts that reach into every bucket: real sentences joined, a word being 1.3 to 2 tokens."""
    return [text_of_words(texts[start:], bucket // 2) for start, bucket in enumerate(buckets)]


def _nearest(vectors: np.ndarray) -> np.ndarray:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    return np.asarray(similarity.argmax(axis=1))


def _batch_invariance(graph: Graph, texts: list[str]) -> Check:
    """A text's vector must not depend on who shares its batch (same padding for both)."""
    width = max(graph.length(text) for text in texts)
    alone = np.concatenate([graph.embed([text], width) for text in texts])
    return worst_difference("batch invariance", graph.embed(texts, width), alone, ABSOLUTE, texts)


def _padding_invariance(graph: Graph, texts: list[str], bucket: int) -> Check:
    fitting = [text for text in texts if graph.length(text) <= bucket]
    alone = np.concatenate([graph.embed([text]) for text in fitting])
    padded = graph.embed(fitting, bucket)
    return worst_difference(f"padding invariance at {bucket}", padded, alone, ABSOLUTE, fitting)


def _dynamic_axes(graph: Graph, buckets: Sequence[int]) -> Check:
    """Every batch size at the shortest, a middle and the longest length gives one row each."""
    wrong = 0
    for rows in BATCH_SIZES:
        for length in (1, buckets[len(buckets) // 2], buckets[-1]):
            ids = np.full((rows, length), 101, dtype=np.int64)
            vectors = graph.run(ids, np.ones_like(ids))
            wrong += vectors.shape[0] != rows or not np.isfinite(vectors).all()
    return at_most("dynamic axes: shapes that went wrong", wrong, 0)


def _determinism(graph: Graph, texts: list[str]) -> Check:
    first, second = graph.embed(texts), graph.embed(texts)
    return worst_difference("determinism", first, second, 0.0, texts)
