"""Prove a token-classification graph against the original's logits for each token.

Scores are probabilities; ``converters.proof.tolerance`` says how much they may differ, and why.
"""

from collections.abc import Sequence

import numpy as np

from converters.proof.checks import Check, worst_difference
from converters.proof.closeness import Closeness, beyond_noise, closeness
from converters.proof.invariance import invariance_checks
from converters.proof.parity import lowest_cosine, mean_difference, same_decision, spread_checks
from converters.proof.reference import Reference
from converters.proof.self_test import answers_self_test
from converters.proof.token_graph import TokenGraph
from converters.tasks.text.answered import few_of_each_length, reference_texts
from converters.tasks.token_classification.entities import token_scores


def graph_checks(graph: TokenGraph, texts: list[str], reference: Reference) -> list[Check]:
    """All checks on these texts, whose tokens' original ``logits`` are FP32 [tokens, labels]."""
    logits = _logits(graph, texts)
    buckets = reference.metadata["buckets"]
    few = few_of_each_length(texts, len(buckets))
    limit = reference.tolerance.invariance * _unit(reference)
    tokens = _tokens(texts, reference)
    original = reference.outputs["logits"]
    return [
        *_parity(logits, reference, tokens),
        *answers_self_test(lambda faulty: _parity(faulty, reference, tokens), original),
        *invariance_checks(graph, few, buckets, limit),
    ]


def parity_checks(graph: TokenGraph, reference: Reference) -> list[Check]:
    """Only the checks of parity."""
    texts = reference_texts(reference)
    return _parity(_logits(graph, texts), reference, _tokens(texts, reference))


def spans_closeness(graph: TokenGraph, reference: Reference) -> Closeness:
    """Closeness of the scores, one text at a time; agreement is the F1 of the spans of equally
    labelled tokens."""
    logits, original = _logits(graph, reference_texts(reference)), reference.outputs["logits"]
    ends = np.cumsum(reference.outputs["token_count"])[:-1]
    labels, of_text = reference.metadata["labels"], reference.outputs["of_text"]
    parts = np.split(of_text, ends)
    predicted, expected = (
        _spans([row[part] for row, part in zip(rows, parts, strict=True)], labels)
        for rows in (np.split(numbers.argmax(axis=1), ends) for numbers in (logits, original))
    )
    total = len(predicted) + len(expected)
    f1 = 2 * len(predicted & expected) / total if total else 1.0
    return closeness(token_scores(logits[of_text]), token_scores(original[of_text]), f1)


def _logits(graph: TokenGraph, texts: Sequence[str]) -> np.ndarray:
    return np.concatenate([token_logits for text in texts for token_logits in graph.infer([text])])


def _spans(texts: Sequence[np.ndarray], labels: Sequence[str]) -> set[tuple[int, int, int, str]]:
    """(text, first token, last token, label) of each run of tokens with the same label; ``B-``
    begins a new run."""
    spans: set[tuple[int, int, int, str]] = set()
    for text, indexes in enumerate(texts):
        names, start = [labels[index] for index in indexes], 0
        for end in range(1, len(names) + 1):
            label = _entity(names[start])
            if end < len(names) and _entity(names[end]) == label and names[end][:2] != "B-":
                continue
            if label:
                spans.add((text, start, end - 1, label))
            start = end
    return spans


def _entity(label: str) -> str:
    return "" if label == "O" else label.removeprefix("B-").removeprefix("I-")


def _parity(logits: np.ndarray, reference: Reference, tokens: Sequence[str]) -> list[Check]:
    """The same scores, and the same likeliest label, for every token of a text."""
    original, tolerance = reference.outputs["logits"], reference.tolerance
    name = "parity: largest difference of a token's score"
    if logits.shape != original.shape:
        return [worst_difference(name, logits, original, tolerance.difference, tokens)]
    # The labels of special tokens are neither trained nor served.
    of_text = reference.outputs["of_text"]
    logits, original = logits[of_text], original[of_text]
    tokens = [token for token, counts in zip(tokens, of_text, strict=True) if counts]
    logits = beyond_noise(logits, original, reference.outputs.get("logits_noise"))
    scores, original_scores = token_scores(logits), token_scores(original)
    limit = tolerance.difference * _unit(reference)
    return [
        worst_difference(name, scores, original_scores, tolerance.difference, tokens),
        *spread_checks(
            "parity: logit", _centred(logits), _centred(original), tolerance.shares, tokens
        ),
        mean_difference(
            "parity: mean difference of a score", scores, original_scores, tolerance.mean
        ),
        lowest_cosine("parity: lowest cosine", scores, original_scores, tolerance.cosine, tokens),
        worst_difference("parity: largest difference of a logit", logits, original, limit, tokens),
        same_decision(
            "task: same likeliest label of a token", scores, original_scores, tolerance, tokens
        ),
    ]


def _centred(logits: np.ndarray) -> np.ndarray:
    """Logits minus their mean, on which the scores do not depend."""
    return np.asarray(logits.astype(np.float64) - logits.mean(axis=1, keepdims=True))


def _unit(reference: Reference) -> float:
    """The unit of a difference of logits, which have no scale of their own: the largest of them, at
    least 1."""
    return max(1.0, float(np.abs(reference.outputs["logits"]).max()))


def _tokens(texts: Sequence[str], reference: Reference) -> list[str]:
    """A name for each token of each text."""
    counts = reference.outputs["token_count"].tolist()
    return [
        f"token {index} of {text[:40]}"
        for text, count in zip(texts, counts, strict=True)
        for index in range(count)
    ]
