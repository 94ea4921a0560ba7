"""Prove a sentence-embedding graph against the original framework's vectors.

The tolerances are those of vectors of length 1; vectors that the model does not normalise may
differ in proportion to their length.
"""

from collections.abc import Sequence

import numpy as np

from converters.proof.checks import Check, worst_difference
from converters.proof.closeness import (
    Closeness,
    beyond_noise,
    closeness,
    same_neighbour,
    similarity,
)
from converters.proof.invariance import invariance_checks
from converters.proof.parity import lowest_cosine, mean_difference, same_decision, spread_checks
from converters.proof.reference import Reference
from converters.proof.self_test import answers_self_test
from converters.proof.token_graph import TokenGraph
from converters.tasks.text.answered import few_of_each_length, reference_texts


def graph_checks(graph: TokenGraph, texts: list[str], reference: Reference) -> list[Check]:
    """All checks on these texts, whose original ``vectors`` are FP32 [n, width]."""
    vectors = _vectors(graph, texts)
    buckets = reference.metadata["buckets"]
    few = few_of_each_length(texts, len(buckets))
    limit = reference.tolerance.invariance * typical_length(reference)
    return [
        *parity(vectors, reference, texts),
        *answers_self_test(
            lambda faulty: parity(faulty, reference, texts), reference.outputs["vectors"]
        ),
        *invariance_checks(graph, few, buckets, limit),
    ]


def parity_checks(graph: TokenGraph, reference: Reference) -> list[Check]:
    """Only the checks of parity."""
    texts = reference_texts(reference)
    return parity(_vectors(graph, texts), reference, texts)


def vectors_closeness(graph: TokenGraph, reference: Reference) -> Closeness:
    """Closeness of the vectors, one text at a time; agreement is the share of texts with the same
    nearest neighbour."""
    vectors = _vectors(graph, reference_texts(reference))
    original, unit = reference.outputs["vectors"], typical_length(reference)
    return closeness(vectors / unit, original / unit, same_neighbour(vectors, original))


def typical_length(reference: Reference) -> float:
    """The mean length of the original's vectors: 1 where the model normalises."""
    return float(np.linalg.norm(reference.outputs["vectors"], axis=1).mean())


def _vectors(graph: TokenGraph, texts: Sequence[str]) -> np.ndarray:
    return np.stack([vector for text in texts for vector in graph.infer([text])])


def parity(vectors: np.ndarray, reference: Reference, texts: Sequence[str]) -> list[Check]:
    """The same vectors, and the same nearest neighbour for every text that has a clear one."""
    original, tolerance = reference.outputs["vectors"], reference.tolerance
    unit = typical_length(reference)
    vectors = beyond_noise(vectors, original, reference.outputs.get("vectors_noise"))
    name = "parity: largest difference"
    largest = worst_difference(name, vectors, original, tolerance.difference * unit, texts)
    if vectors.shape != original.shape:
        return [largest]
    similarities, original_similarities = similarity(vectors), similarity(original)
    return [
        largest,
        *spread_checks("parity: vector", vectors, original, tolerance.shares, texts),
        mean_difference("parity: mean difference", vectors, original, tolerance.mean * unit),
        lowest_cosine("parity: lowest cosine", vectors, original, tolerance.cosine, texts),
        same_decision(
            "task: same nearest neighbour", similarities, original_similarities, tolerance, texts
        ),
    ]
