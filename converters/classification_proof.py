"""Prove a text-classification graph, and the pipeline that serves it, against the original.

Scores are probabilities. Two correct FP32 runs differ by about 1e-6; 1e-4 is far below what any
threshold in use can see, and the likeliest label must be the same for every text whose two best
scores are not equal to within that.
"""

from collections.abc import Callable, Sequence

import numpy as np

from converters.invariance import invariance_checks
from converters.proof import Check, Proof, at_most, worst_difference
from converters.token_graph import TokenGraph

LOGITS = 1e-4  # absolute, on numbers of the order of 10
SCORES = 1e-4
Scores = Callable[[np.ndarray], np.ndarray]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))


FUNCTIONS: dict[str, Scores] = {"softmax": softmax, "sigmoid": sigmoid}


def prove(
    subject: str,
    graph: TokenGraph,
    texts: list[str],
    original: np.ndarray,
    buckets: Sequence[int],
    function: str,
) -> Proof:
    """Every check on these texts, whose original scores are FP32 [n, labels]."""
    logits = np.stack([answer for text in texts for answer in graph.answer([text])])
    few = [*texts[:16], *texts[-len(buckets) :]]
    checks = (
        *parity(FUNCTIONS[function](logits.astype(np.float64)), original, texts),
        *invariance_checks(graph, few, buckets, LOGITS),
    )
    return Proof(subject, len(texts), checks)


def parity(scores: np.ndarray, original: np.ndarray, texts: Sequence[str]) -> list[Check]:
    """The same scores, and the same likeliest label, for every text."""
    check = worst_difference("parity: largest difference", scores, original, SCORES, texts)
    if scores.shape != original.shape:
        return [check]
    ordered = np.sort(original, axis=1)
    clear = (
        ordered[:, -1] - ordered[:, -2] > 2 * SCORES
        if original.shape[1] > 1
        else np.ones(len(original), dtype=bool)
    )
    flipped = np.flatnonzero((scores.argmax(axis=1) != original.argmax(axis=1)) & clear)
    worst = repr(texts[flipped[0]][:60]) if len(flipped) else ""
    return [check, at_most("task: likeliest labels that differ", len(flipped), 0, worst)]
