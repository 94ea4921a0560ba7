"""Prove what Triton serves of a token classifier: raw texts over gRPC, against the original."""

from collections.abc import Sequence

import numpy as np
from tritonclient import grpc as triton

from converters.proof.checks import Check, at_least, worst_difference
from converters.proof.reference import Reference
from converters.tasks.text.answered import reference_texts
from converters.tasks.text.served_text import ServedText
from converters.tasks.text.served_tokens import token_checks
from converters.tasks.token_classification.entities import (
    TextEntities,
    clear_texts,
    original_entities,
    score_difference,
    served_entities,
    slices_of_text,
    span_f1,
)

OUTPUTS = ("entity", "start", "end", "label", "score", "count", "token_count")


def served_checks(address: str, reference: Reference) -> list[Check]:
    """Checks of the pipeline at ``address``, with requests of every form that clients send."""
    with triton.InferenceServerClient(address) as client:
        return checks_of(ServedText(client, reference.name), reference)


def checks_of(served: ServedText, reference: Reference) -> list[Check]:
    """The same checks of anything that responds as a served text pipeline does."""
    texts, tolerance = reference_texts(reference), reference.tolerance
    original, clear = original_entities(reference, len(texts)), clear_texts(reference, tolerance)
    checks = [_enough(original, clear)]
    alone: list[TextEntities] = []
    for mode, responses in served.rounds(texts, OUTPUTS):
        found = served_entities(responses)
        limit, expected = tolerance.invariance, alone
        if mode == "alone":
            alone, limit, expected = found, tolerance.difference, original
        scores = f"largest difference of an entity's score, {mode}"
        counts = np.concatenate([response["token_count"] for response in responses])
        checks += [
            span_f1(f"task: span F1, {mode}", found, original, clear, tolerance.agreement, texts),
            score_difference(scores, found, expected, limit, texts),
            slices_of_text(f"entities that are no slice of their text, {mode}", found, texts),
            _counts(f"token counts, {mode}", counts, reference, texts),
        ]
    return [*checks, *token_checks(served, reference), *_truncated(served, reference)]


def _enough(original: Sequence[TextEntities], clear: Sequence[bool]) -> Check:
    """Without an entity to find, finding none would prove nothing."""
    count = sum(
        len(entities.spans) for entities, is_clear in zip(original, clear, strict=True) if is_clear
    )
    return at_least("entities that the original finds in the samples", count, 1)


def _counts(name: str, counts: np.ndarray, reference: Reference, texts: Sequence[str]) -> Check:
    expected = reference.answers["token_count"][:, None]
    return worst_difference(name, counts.astype(np.float64), expected, 0, texts)


def _truncated(served: ServedText, reference: Reference) -> list[Check]:
    """A text that is too long is cut as the original cuts it."""
    texts, tolerance = [str(text) for text in reference.answers["too_long"]], reference.tolerance
    found = served_entities([served.answer(texts, OUTPUTS, truncate=True)])
    expected = original_entities(reference, len(texts), "long_")
    clear = clear_texts(reference, tolerance, "long_")
    name = "task: span F1, a text that is cut"
    return [
        span_f1(name, found, expected, clear, tolerance.agreement, texts),
        score_difference(
            "scores, a text that is cut", found, expected, tolerance.difference, texts
        ),
        slices_of_text("slices, a text that is cut", found, texts),
    ]
