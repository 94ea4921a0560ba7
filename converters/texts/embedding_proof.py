"""Prove a sentence-embedding graph against the original framework's vectors.

The allowed differences are those of vectors of length 1; vectors that the model does not normalise
may differ by as much in proportion to their length.
"""

from collections.abc import Sequence

import numpy as np

from converters.closeness import (
    Closeness,
    beyond_noise,
    closeness,
    same_neighbour,
    similarity,
)
from converters.parity import lowest_cosine, mean_difference, same_decision, spread_checks
from converters.proof import Check, worst_difference
from converters.self_test import answers_self_test
from converters.task import Case
from converters.texts.answered import case_texts, few_of_each_length
from converters.texts.invariance import invariance_checks
from converters.texts.token_graph import TokenGraph


def graph_checks(graph: TokenGraph, texts: list[str], case: Case) -> list[Check]:
    """Every check on these texts, whose original ``vectors`` are FP32 [n, width]."""
    got = np.stack([answer for text in texts for answer in graph.answer([text])])
    buckets = case.facts["buckets"]
    few = few_of_each_length(texts, len(buckets))
    limit = case.tolerance.invariance * typical_length(case)
    return [
        *parity(got, case, texts),
        *answers_self_test(lambda got: parity(got, case, texts), case.answers["vectors"]),
        *invariance_checks(graph, few, buckets, limit),
    ]


def parity_checks(graph: TokenGraph, case: Case) -> list[Check]:
    """The checks of parity alone."""
    texts = case_texts(case)
    got = np.stack([answer for text in texts for answer in graph.answer([text])])
    return parity(got, case, texts)


def vectors_closeness(graph: TokenGraph, case: Case) -> Closeness:
    """Every text alone; agreement is the same nearest neighbour, over all of them."""
    got = np.stack([answer for text in case_texts(case) for answer in graph.answer([text])])
    original, unit = case.answers["vectors"], typical_length(case)
    return closeness(got / unit, original / unit, same_neighbour(got, original))


def typical_length(case: Case) -> float:
    """The mean length of the original's vectors: 1 where the model normalises."""
    return float(np.linalg.norm(case.answers["vectors"], axis=1).mean())


def parity(got: np.ndarray, case: Case, texts: Sequence[str]) -> list[Check]:
    """The same vectors, and the same nearest neighbour for every text that has a clear one."""
    original, allowed, unit = case.answers["vectors"], case.tolerance, typical_length(case)
    got = beyond_noise(got, original, case.answers.get("vectors_noise"))
    name = "parity: largest difference"
    largest = worst_difference(name, got, original, allowed.difference * unit, texts)
    if got.shape != original.shape:
        return [largest]
    near, wanted = similarity(got), similarity(original)
    return [
        largest,
        *spread_checks("parity: vector", got, original, allowed.shares, texts),
        mean_difference("parity: mean difference", got, original, allowed.mean * unit),
        lowest_cosine("parity: lowest cosine", got, original, allowed.cosine, texts),
        same_decision("task: same nearest neighbour", near, wanted, allowed, texts),
    ]
