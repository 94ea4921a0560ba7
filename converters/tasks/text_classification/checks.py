"""Prove a text-classification graph, and the pipeline that serves it, against the original.

Scores are probabilities; ``converters.proof.tolerance`` says how much they may differ, and why.
"""

from collections.abc import Sequence

import numpy as np

from converters.proof.checks import Check
from converters.proof.closeness import Closeness, closeness, spread_of
from converters.proof.closeness import same_decision as same_label
from converters.proof.invariance import invariance_checks
from converters.proof.reference import Reference
from converters.proof.scores import FUNCTIONS, parity
from converters.proof.self_test import answers_self_test
from converters.proof.token_graph import TokenGraph
from converters.tasks.text.answered import few_of_each_length, reference_texts

# In units of rounding: padding changes the order of many sums, not of one.
ROUNDED = 16


def graph_checks(graph: TokenGraph, texts: list[str], reference: Reference) -> list[Check]:
    """All checks on these texts, whose original ``scores`` are FP32 [n, labels]."""
    logits = _logits(graph, texts)
    scores = FUNCTIONS[reference.metadata["function"]](logits)
    buckets = reference.metadata["buckets"]
    few = few_of_each_length(texts, len(buckets))
    original, function = reference.outputs["scores"], reference.metadata["function"]
    return [
        *parity(scores, reference, texts),
        *answers_self_test(lambda faulty: parity(faulty, reference, texts), original, function),
        *invariance_checks(graph, few, buckets, logit_limit(logits, reference)),
    ]


def logit_limit(logits: np.ndarray, reference: Reference) -> float:
    """How far a logit may differ between alone and in a batch: where logits vary as usual, as much
    as a score; otherwise in proportion to how much they vary, and never less than FP32 rounds
    off."""
    spread = spread_of(logits)
    floor = ROUNDED * float(spread.floor.max())
    return float(max(reference.tolerance.invariance * spread.size.max(), floor))


def parity_checks(graph: TokenGraph, reference: Reference) -> list[Check]:
    """Only the checks of parity."""
    texts = reference_texts(reference)
    return parity(_scores(graph, texts, reference), reference, texts)


def score_unit(reference: Reference) -> float:
    """The unit of a difference of scores: 1 for probabilities; for a regression's numbers how far
    they lie apart (or, where that is more, how much FP32 rounds off them)."""
    if reference.metadata["function"] != "none":
        return 1.0
    spread, shares = spread_of(reference.outputs["scores"]), reference.tolerance.shares
    rounded = float(spread.floor.max()) / reference.tolerance.difference
    return max(float(spread.size.max()) * shares.largest / reference.tolerance.difference, rounded)


def scores_closeness(graph: TokenGraph, reference: Reference) -> Closeness:
    """Closeness of the scores, one text at a time; agreement is the share of texts with the same
    likeliest label."""
    actual = _scores(graph, reference_texts(reference), reference)
    expected = reference.outputs["scores"]
    return closeness(actual, expected, same_label(actual, expected))


def _scores(graph: TokenGraph, texts: Sequence[str], reference: Reference) -> np.ndarray:
    return FUNCTIONS[reference.metadata["function"]](_logits(graph, texts))


def _logits(graph: TokenGraph, texts: Sequence[str]) -> np.ndarray:
    logits = np.stack([logits_row for text in texts for logits_row in graph.infer([text])])
    return np.asarray(logits.astype(np.float64))
