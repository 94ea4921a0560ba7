"""Prove a token-classification graph against the original's answers for each token.

Scores are probabilities; ``converters.tolerance`` says how far they may differ, and why.
"""

from collections.abc import Sequence

import numpy as np

from converters.closeness import Closeness, beyond_noise, closeness
from converters.parity import lowest_cosine, mean_difference, same_decision, spread_checks
from converters.proof import Check, worst_difference
from converters.self_test import answers_self_test
from converters.task import Reference
from converters.text.answered import case_texts, few_of_each_length
from converters.text.entities import token_scores
from converters.text.invariance import invariance_checks
from converters.text.token_graph import TokenGraph


def graph_checks(graph: TokenGraph, texts: list[str], reference: Reference) -> list[Check]:
    """Every check on these texts, whose tokens' original ``logits`` are FP32 [tokens, labels]."""
    logits = _logits(graph, texts)
    buckets = reference.metadata["buckets"]
    few = few_of_each_length(texts, len(buckets))
    limit = reference.tolerance.invariance * _unit(reference)
    tokens = _tokens(texts, reference)
    original = reference.answers["logits"]
    return [
        *_parity(logits, reference, tokens),
        *answers_self_test(lambda got: _parity(got, reference, tokens), original),
        *invariance_checks(graph, few, buckets, limit),
    ]


def parity_checks(graph: TokenGraph, reference: Reference) -> list[Check]:
    """The checks of parity alone."""
    texts = case_texts(reference)
    return _parity(_logits(graph, texts), reference, _tokens(texts, reference))


def spans_closeness(graph: TokenGraph, reference: Reference) -> Closeness:
    """Every text alone; agreement is the F1 of the spans of tokens that are labelled alike."""
    logits, original = _logits(graph, case_texts(reference)), reference.answers["logits"]
    ends = np.cumsum(reference.answers["token_count"])[:-1]
    mine, theirs = (
        _spans(np.split(each.argmax(axis=1), ends), reference.metadata["labels"])
        for each in (logits, original)
    )
    f1 = 2 * len(mine & theirs) / (len(mine) + len(theirs)) if mine or theirs else 1.0
    return closeness(token_scores(logits), token_scores(original), f1)


def _logits(graph: TokenGraph, texts: Sequence[str]) -> np.ndarray:
    return np.concatenate([answer for text in texts for answer in graph.answer([text])])


def _spans(texts: Sequence[np.ndarray], labels: Sequence[str]) -> set[tuple[int, int, int, str]]:
    """Text, first and last token, and kind of each run of tokens of one kind; ``B-`` begins one."""
    spans: set[tuple[int, int, int, str]] = set()
    for text, indexes in enumerate(texts):
        names, start = [labels[index] for index in indexes], 0
        for end in range(1, len(names) + 1):
            kind = _entity(names[start])
            if end < len(names) and _entity(names[end]) == kind and names[end][:2] != "B-":
                continue
            if kind:
                spans.add((text, start, end - 1, kind))
            start = end
    return spans


def _entity(label: str) -> str:
    return "" if label == "O" else label.removeprefix("B-").removeprefix("I-")


def _parity(logits: np.ndarray, reference: Reference, tokens: Sequence[str]) -> list[Check]:
    """The same scores, and the same likeliest label, for every token."""
    original, allowed = reference.answers["logits"], reference.tolerance
    name = "parity: largest difference of a token's score"
    if logits.shape != original.shape:
        return [worst_difference(name, logits, original, allowed.difference, tokens)]
    logits = beyond_noise(logits, original, reference.answers.get("logits_noise"))
    got, wanted = token_scores(logits), token_scores(original)
    limit = allowed.difference * _unit(reference)
    return [
        worst_difference(name, got, wanted, allowed.difference, tokens),
        *spread_checks(
            "parity: logit", _centred(logits), _centred(original), allowed.shares, tokens
        ),
        mean_difference("parity: mean difference of a score", got, wanted, allowed.mean),
        lowest_cosine("parity: lowest cosine", got, wanted, allowed.cosine, tokens),
        worst_difference("parity: largest difference of a logit", logits, original, limit, tokens),
        same_decision("task: same likeliest label of a token", got, wanted, allowed, tokens),
    ]


def _centred(logits: np.ndarray) -> np.ndarray:
    """Logits less their mean, which the scores do not depend on."""
    return np.asarray(logits.astype(np.float64) - logits.mean(axis=1, keepdims=True))


def _unit(reference: Reference) -> float:
    """Logits have no scale of their own: they may differ in proportion to the largest, which is
    seldom below 1."""
    return max(1.0, float(np.abs(reference.answers["logits"]).max()))


def _tokens(texts: Sequence[str], reference: Reference) -> list[str]:
    """A name for each token of each text."""
    counts = reference.answers["token_count"].tolist()
    return [
        f"token {index} of {text[:40]}"
        for text, count in zip(texts, counts, strict=True)
        for index in range(count)
    ]
