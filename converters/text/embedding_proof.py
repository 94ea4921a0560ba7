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
from converters.task import Reference
from converters.text.answered import case_texts, few_of_each_length
from converters.text.invariance import invariance_checks
from converters.text.token_graph import TokenGraph


def graph_checks(graph: TokenGraph, texts: list[str], reference: Reference) -> list[Check]:
    """Every check on these texts, whose original ``vectors`` are FP32 [n, width]."""
    got = np.stack([answer for text in texts for answer in graph.answer([text])])
    buckets = reference.metadata["buckets"]
    few = few_of_each_length(texts, len(buckets))
    limit = reference.tolerance.invariance * typical_length(reference)
    return [
        *parity(got, reference, texts),
        *answers_self_test(lambda got: parity(got, reference, texts), reference.answers["vectors"]),
        *invariance_checks(graph, few, buckets, limit),
    ]


def parity_checks(graph: TokenGraph, reference: Reference) -> list[Check]:
    """The checks of parity alone."""
    texts = case_texts(reference)
    got = np.stack([answer for text in texts for answer in graph.answer([text])])
    return parity(got, reference, texts)


def vectors_closeness(graph: TokenGraph, reference: Reference) -> Closeness:
    """Every text alone; agreement is the same nearest neighbour, over all of them."""
    got = np.stack([answer for text in case_texts(reference) for answer in graph.answer([text])])
    original, unit = reference.answers["vectors"], typical_length(reference)
    return closeness(got / unit, original / unit, same_neighbour(got, original))


def typical_length(reference: Reference) -> float:
    """The mean length of the original's vectors: 1 where the model normalises."""
    return float(np.linalg.norm(reference.answers["vectors"], axis=1).mean())


def parity(got: np.ndarray, reference: Reference, texts: Sequence[str]) -> list[Check]:
    """The same vectors, and the same nearest neighbour for every text that has a clear one."""
    original, allowed, unit = (
        reference.answers["vectors"],
        reference.tolerance,
        typical_length(reference),
    )
    got = beyond_noise(got, original, reference.answers.get("vectors_noise"))
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
