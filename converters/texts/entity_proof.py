"""Prove a token-classification graph against the original's answers for each token.

Scores are probabilities; ``converters.tolerance`` says how far they may differ, and why.
"""

from collections.abc import Sequence

import numpy as np

from converters.parity import lowest_cosine, mean_difference, same_decision
from converters.proof import Check, worst_difference
from converters.task import Case
from converters.texts.answered import few_of_each_length
from converters.texts.entities import token_scores
from converters.texts.invariance import invariance_checks
from converters.texts.token_graph import TokenGraph


def graph_checks(graph: TokenGraph, texts: list[str], case: Case) -> list[Check]:
    """Every check on these texts, whose tokens' original ``logits`` are FP32 [tokens, labels]."""
    logits = np.concatenate([answer for text in texts for answer in graph.answer([text])])
    buckets = case.facts["buckets"]
    few = few_of_each_length(texts, len(buckets))
    limit = case.tolerance.invariance * _unit(case)
    tokens = _tokens(texts, case)
    return [*_parity(logits, case, tokens), *invariance_checks(graph, few, buckets, limit)]


def _parity(logits: np.ndarray, case: Case, tokens: Sequence[str]) -> list[Check]:
    """The same scores, and the same likeliest label, for every token."""
    original, allowed = case.answers["logits"], case.tolerance
    name = "parity: largest difference of a token's score"
    if logits.shape != original.shape:
        return [worst_difference(name, logits, original, allowed.difference, tokens)]
    got, wanted = token_scores(logits), token_scores(original)
    limit = allowed.difference * _unit(case)
    return [
        worst_difference(name, got, wanted, allowed.difference, tokens),
        mean_difference("parity: mean difference of a score", got, wanted, allowed.mean),
        lowest_cosine("parity: lowest cosine", got, wanted, allowed.cosine, tokens),
        worst_difference("parity: largest difference of a logit", logits, original, limit, tokens),
        same_decision("task: same likeliest label of a token", got, wanted, allowed, tokens),
    ]


def _unit(case: Case) -> float:
    """Logits have no scale of their own: they may differ in proportion to the largest, which is
    seldom below 1."""
    return max(1.0, float(np.abs(case.answers["logits"]).max()))


def _tokens(texts: Sequence[str], case: Case) -> list[str]:
    """A name for each token of each text."""
    counts = case.answers["token_count"].tolist()
    return [
        f"token {index} of {text[:40]}"
        for text, count in zip(texts, counts, strict=True)
        for index in range(count)
    ]
