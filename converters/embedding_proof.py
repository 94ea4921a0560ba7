"""Prove a sentence-embedding graph against the original framework's vectors.

The tolerances are those of FP32. Two correct FP32 runs of this model differ by about 2e-7 (the
order of additions); 1e-5 leaves room for other processors and is far below what changes a
neighbour (unit vectors of different sentences differ by 1e-1).
"""

from collections.abc import Sequence

import numpy as np

from converters.invariance import invariance_checks
from converters.proof import Check, Proof, at_least, worst_difference
from converters.token_graph import TokenGraph

ABSOLUTE = 1e-5
COSINE = 0.99999
INVARIANCE_SAMPLES = 16


def prove(
    subject: str, graph: TokenGraph, texts: list[str], original: np.ndarray, buckets: Sequence[int]
) -> Proof:
    """Every check on these texts, whose original vectors are FP32 [n, width]."""
    got = np.stack([answer for text in texts for answer in graph.answer([text])])
    # Short sentences and, from the end of the list, the texts that reach into every bucket.
    few = [*texts[:INVARIANCE_SAMPLES], *texts[-len(buckets) :]]
    checks = (
        *parity(got, original, texts),
        *invariance_checks(graph, few, buckets, ABSOLUTE),
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


def _nearest(vectors: np.ndarray) -> np.ndarray:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    return np.asarray(similarity.argmax(axis=1))
