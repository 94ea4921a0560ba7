"""Prove a text-classification graph, and the pipeline that serves it, against the original.

Scores are probabilities; ``converters.tolerance`` says how far they may differ, and why.
"""

from collections.abc import Callable, Sequence

import numpy as np

from converters.closeness import Closeness, beyond_noise, closeness, spread_of
from converters.closeness import same_decision as same_label
from converters.parity import (
    lowest_cosine,
    mean_difference,
    same_decision,
    score_spread_checks,
)
from converters.proof import Check, worst_difference
from converters.self_test import answers_self_test
from converters.task import Reference
from converters.text.answered import case_texts, few_of_each_length
from converters.text.invariance import invariance_checks
from converters.text.token_graph import TokenGraph

# Padding changes the order of many sums, not of one.
ROUNDED = 16

Scores = Callable[[np.ndarray], np.ndarray]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))


def none(logits: np.ndarray) -> np.ndarray:
    return logits


FUNCTIONS: dict[str, Scores] = {"softmax": softmax, "sigmoid": sigmoid, "none": none}


def graph_checks(graph: TokenGraph, texts: list[str], reference: Reference) -> list[Check]:
    """Every check on these texts, whose original ``scores`` are FP32 [n, labels]."""
    logits = _logits(graph, texts)
    scores = FUNCTIONS[reference.metadata["function"]](logits)
    buckets = reference.metadata["buckets"]
    few = few_of_each_length(texts, len(buckets))
    original, function = reference.answers["scores"], reference.metadata["function"]
    return [
        *parity(scores, reference, texts),
        *answers_self_test(lambda got: parity(got, reference, texts), original, function),
        *invariance_checks(graph, few, buckets, logit_limit(logits, reference)),
    ]


def logit_limit(logits: np.ndarray, reference: Reference) -> float:
    """How far a logit may be off between alone and in a batch: of logits as they usually are, what
    a score may; of larger or smaller ones in proportion to how far they lie apart, and never less
    than FP32 rounds off."""
    spread = spread_of(logits)
    floor = ROUNDED * float(spread.floor.max())
    return float(max(reference.tolerance.invariance * spread.size.max(), floor))


def parity_checks(graph: TokenGraph, reference: Reference) -> list[Check]:
    """The checks of parity alone."""
    return parity(
        _scores(graph, case_texts(reference), reference), reference, case_texts(reference)
    )


def score_unit(reference: Reference) -> float:
    """What a difference of scores is measured in: 1 of probabilities, of a regression's numbers how
    far they lie apart (and, in units of rounding, how large they are)."""
    if reference.metadata["function"] != "none":
        return 1.0
    spread, shares = spread_of(reference.answers["scores"]), reference.tolerance.shares
    rounded = float(spread.floor.max()) / reference.tolerance.difference
    return max(float(spread.size.max()) * shares.largest / reference.tolerance.difference, rounded)


def scores_closeness(graph: TokenGraph, reference: Reference) -> Closeness:
    """Every text alone; agreement is the same likeliest label, over all of them."""
    got, wanted = _scores(graph, case_texts(reference), reference), reference.answers["scores"]
    return closeness(got, wanted, same_label(got, wanted))


def _scores(graph: TokenGraph, texts: Sequence[str], reference: Reference) -> np.ndarray:
    return FUNCTIONS[reference.metadata["function"]](_logits(graph, texts))


def _logits(graph: TokenGraph, texts: Sequence[str]) -> np.ndarray:
    logits = np.stack([answer for text in texts for answer in graph.answer([text])])
    return np.asarray(logits.astype(np.float64))


def parity(scores: np.ndarray, reference: Reference, texts: Sequence[str]) -> list[Check]:
    """The same scores, and the same likeliest label, for every text."""
    original, allowed = reference.answers["scores"], reference.tolerance
    scores = beyond_noise(scores, original, reference.answers.get("scores_noise"))
    spread = score_spread_checks(
        "parity: score", scores, original, reference.metadata["function"], allowed.shares, texts
    )
    if (
        reference.metadata["function"] == "none"
    ):  # a regression: its numbers have a scale of their own
        return spread
    return [
        *spread,
        worst_difference(
            "parity: largest difference of a score", scores, original, allowed.difference, texts
        ),
        mean_difference("parity: mean difference of a score", scores, original, allowed.mean),
        lowest_cosine("parity: lowest cosine", scores, original, allowed.cosine, texts),
        same_decision("task: same likeliest label", scores, original, allowed, texts),
    ]
