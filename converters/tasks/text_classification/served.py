"""Prove what Triton serves of a text classifier: raw texts over gRPC, against the original."""

from collections.abc import Mapping, Sequence

import numpy as np

from converters.proof.checks import Check, at_most, worst_difference
from converters.proof.label_step import label_checks
from converters.proof.reference import Reference
from converters.proof.scores import parity
from converters.proof.served_client import ServedClient
from converters.tasks.text.answered import reference_texts
from converters.tasks.text.served_text import ServedText
from converters.tasks.text.served_tokens import token_checks
from converters.tasks.text_classification.checks import score_unit

OUTPUTS = ("label", "score", "token_count")


def served_checks(address: str, reference: Reference) -> list[Check]:
    """Checks of the pipeline at ``address``, with requests of every form that clients send."""
    texts, labels = reference_texts(reference), reference.metadata["labels"]
    checks: list[Check] = []
    unit = score_unit(reference)
    alone = np.empty(0)
    with ServedClient(address) as client:
        served = ServedText(client, reference.name)
        for mode, responses in served.rounds(texts, OUTPUTS):
            scores = np.concatenate([_in_order(response, labels) for response in responses])
            if mode == "alone":
                alone = scores
                checks += [
                    *parity(scores, reference, texts),
                    _token_counts(responses, reference, texts),
                ]
            else:
                limit = reference.tolerance.invariance * unit
                checks.append(worst_difference(f"the same {mode}", scores, alone, limit, texts))
            checks.append(_likeliest_first(f"likeliest first, {mode}", responses, texts))
        return [
            *checks,
            *token_checks(served, reference),
            *label_checks(client, reference),
            _truncated(served, reference),
        ]


def _truncated(served: ServedText, reference: Reference) -> Check:
    """A text that is too long is cut as the original cuts it."""
    texts = [str(text) for text in reference.outputs["too_long"]]
    response = served.infer(texts, OUTPUTS, truncate=True)
    scores = _in_order(response, reference.metadata["labels"])
    expected = reference.outputs["long_scores"]
    limit = reference.tolerance.difference * score_unit(reference)
    return worst_difference("parity: a text that is cut", scores, expected, limit, texts)


def _in_order(response: Mapping[str, np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Scores FP32 [n, labels] in the model's order; NaN where a label is missing."""
    indexes = {label.encode(): index for index, label in enumerate(labels)}
    scores = np.full((len(response["label"]), len(labels)), np.nan, dtype=np.float32)
    for row, (names, values) in enumerate(zip(response["label"], response["score"], strict=True)):
        for name, value in zip(names, values, strict=True):
            if name in indexes:
                scores[row, indexes[name]] = value
    return scores


def _likeliest_first(
    name: str, responses: Sequence[Mapping[str, np.ndarray]], texts: Sequence[str]
) -> Check:
    scores = np.concatenate([response["score"] for response in responses])
    wrong = np.flatnonzero((np.diff(scores, axis=1) > 0).any(axis=1))
    worst = f"{texts[wrong[0]][:60]!r}: {scores[wrong[0]]}" if len(wrong) else ""
    return at_most(name, len(wrong), 0, worst)


def _token_counts(
    responses: Sequence[Mapping[str, np.ndarray]], reference: Reference, texts: Sequence[str]
) -> Check:
    actual = np.concatenate([response["token_count"] for response in responses]).astype(np.float64)
    expected = reference.outputs["token_count"][:, None]
    return worst_difference("token counts", actual, expected, 0, texts)
