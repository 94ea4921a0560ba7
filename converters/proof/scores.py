"""Scores of labels against the original's: probabilities, or the numbers of a regression."""

from collections.abc import Callable, Sequence

import numpy as np

from converters.proof.checks import Check, worst_difference
from converters.proof.closeness import beyond_noise
from converters.proof.parity import (
    lowest_cosine,
    mean_difference,
    same_decision,
    score_spread_checks,
)
from converters.proof.reference import Reference

Scores = Callable[[np.ndarray], np.ndarray]


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))


def none(logits: np.ndarray) -> np.ndarray:
    return logits


FUNCTIONS: dict[str, Scores] = {"softmax": softmax, "sigmoid": sigmoid, "none": none}


def parity(scores: np.ndarray, reference: Reference, texts: Sequence[str]) -> list[Check]:
    """The same scores, and the same likeliest label, for every text."""
    original, tolerance = reference.outputs["scores"], reference.tolerance
    function = reference.metadata["function"]
    scores = beyond_noise(scores, original, reference.outputs.get("scores_noise"))
    spread = score_spread_checks(
        "parity: score", scores, original, function, tolerance.shares, texts
    )
    if function == "none":  # a regression, whose numbers have a scale of their own
        return spread
    return [
        *spread,
        worst_difference(
            "parity: largest difference of a score", scores, original, tolerance.difference, texts
        ),
        mean_difference("parity: mean difference of a score", scores, original, tolerance.mean),
        lowest_cosine("parity: lowest cosine", scores, original, tolerance.cosine, texts),
        same_decision("task: same likeliest label", scores, original, tolerance, texts),
    ]
