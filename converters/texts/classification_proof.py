"""Prove a text-classification graph, and the pipeline that serves it, against the original.

Scores are probabilities; ``converters.tolerance`` says how far they may differ, and why.
"""

from collections.abc import Callable, Sequence

import numpy as np

from converters.closeness import Closeness, closeness
from converters.closeness import same_decision as same_label
from converters.parity import lowest_cosine, mean_difference, same_decision
from converters.proof import Check, worst_difference
from converters.task import Case
from converters.texts.answered import case_texts, few_of_each_length
from converters.texts.invariance import invariance_checks
from converters.texts.token_graph import TokenGraph

Scores = Callable[[np.ndarray], np.ndarray]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))


def none(logits: np.ndarray) -> np.ndarray:
    return logits


FUNCTIONS: dict[str, Scores] = {"softmax": softmax, "sigmoid": sigmoid, "none": none}


def graph_checks(graph: TokenGraph, texts: list[str], case: Case) -> list[Check]:
    """Every check on these texts, whose original ``scores`` are FP32 [n, labels]."""
    scores = _scores(graph, texts, case)
    buckets = case.facts["buckets"]
    few = few_of_each_length(texts, len(buckets))
    return [
        *parity(scores, case, texts),
        *invariance_checks(graph, few, buckets, case.tolerance.invariance),
    ]


def scores_closeness(graph: TokenGraph, case: Case) -> Closeness:
    """Every text alone; agreement is the same likeliest label, over all of them."""
    got, wanted = _scores(graph, case_texts(case), case), case.answers["scores"]
    return closeness(got, wanted, same_label(got, wanted))


def _scores(graph: TokenGraph, texts: Sequence[str], case: Case) -> np.ndarray:
    logits = np.stack([answer for text in texts for answer in graph.answer([text])])
    return FUNCTIONS[case.facts["function"]](logits.astype(np.float64))


def parity(scores: np.ndarray, case: Case, texts: Sequence[str]) -> list[Check]:
    """The same scores, and the same likeliest label, for every text."""
    original, allowed = case.answers["scores"], case.tolerance
    return [
        worst_difference(
            "parity: largest difference of a score", scores, original, allowed.difference, texts
        ),
        mean_difference("parity: mean difference of a score", scores, original, allowed.mean),
        lowest_cosine("parity: lowest cosine", scores, original, allowed.cosine, texts),
        same_decision("task: same likeliest label", scores, original, allowed, texts),
    ]
