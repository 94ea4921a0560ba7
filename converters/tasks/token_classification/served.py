"""Prove what Triton serves of a token classifier: raw texts over gRPC, against the original."""

from collections.abc import Sequence

import numpy as np

from converters.proof.checks import Check, at_least, worst_difference
from converters.proof.reference import Reference
from converters.proof.served_client import ServedClient
from converters.tasks.text.answered import reference_texts
from converters.tasks.text.served_text import BATCH, ServedText
from converters.tasks.text.served_tokens import token_checks
from converters.tasks.token_classification.entities import (
    TextEntities,
    clear_entities,
    original_entities,
    score_difference,
    served_entities,
    slices_of_text,
    span_f1,
    undecided_characters,
)

OUTPUTS = ("entity", "start", "end", "label", "score", "count", "token_count")
SCORE = 1e-5  # between two means of softmaxes of the same FP32 numbers


def served_checks(address: str, reference: Reference) -> list[Check]:
    """Checks of the pipeline at ``address``, with requests of every form that clients send."""
    with ServedClient(address) as client:
        return checks_of(ServedText(client, reference.name), reference)


def checks_of(served: ServedText, reference: Reference) -> list[Check]:
    """The same checks of anything that responds as a served text pipeline does."""
    texts, tolerance = reference_texts(reference), reference.tolerance
    undecided = undecided_characters(reference, tolerance, texts)
    original = clear_entities(original_entities(reference, len(texts)), undecided)
    checks = [_enough(original)]
    alone: list[TextEntities] = []
    for mode, responses in served.rounds(texts, OUTPUTS):
        predicted = served_entities(responses)
        clear = clear_entities(predicted, undecided)
        limit, expected = tolerance.invariance, alone
        if mode == "alone":
            alone, limit, expected = clear, tolerance.difference, original
        scores = f"largest difference of an entity's score, {mode}"
        counts = np.concatenate([response["token_count"] for response in responses])
        checks += [
            span_f1(f"task: span F1, {mode}", clear, original, tolerance.agreement, texts),
            score_difference(scores, clear, expected, limit, texts),
            slices_of_text(f"entities that are no slice of their text, {mode}", predicted, texts),
            _counts(f"token counts, {mode}", counts, reference, texts),
        ]
    return [
        *checks,
        *token_checks(served, reference),
        *_last_step(served, reference),
        *_truncated(served, reference),
    ]


def _last_step(served: ServedText, reference: Reference) -> list[Check]:
    """The last step by itself, given the original's own logits: whatever a precision rounds off,
    it must find the original's entities and scores."""
    texts = reference_texts(reference)
    ends = np.cumsum(reference.outputs["token_count"])[:-1]
    logits = np.split(reference.outputs["logits"], ends)
    outputs = [name for name in OUTPUTS if name != "token_count"]
    predicted = served_entities(
        [
            served.of_logits(texts[start : start + BATCH], logits[start : start + BATCH], outputs)
            for start in range(0, len(texts), BATCH)
        ]
    )
    original = original_entities(reference, len(texts))
    return [
        span_f1("task: span F1 of the original's own logits", predicted, original, 1.0, texts),
        score_difference("scores of the original's own logits", predicted, original, SCORE, texts),
    ]


def _enough(original: Sequence[TextEntities]) -> Check:
    """Without an entity to find, finding none would prove nothing."""
    count = sum(len(entities.spans) for entities in original)
    return at_least("entities that the original finds in the samples", count, 1)


def _counts(name: str, counts: np.ndarray, reference: Reference, texts: Sequence[str]) -> Check:
    expected = reference.outputs["token_count"][:, None]
    return worst_difference(name, counts.astype(np.float64), expected, 0, texts)


def _truncated(served: ServedText, reference: Reference) -> list[Check]:
    """A text that is too long is cut as the original cuts it."""
    texts, tolerance = [str(text) for text in reference.outputs["too_long"]], reference.tolerance
    predicted = served_entities([served.infer(texts, OUTPUTS, truncate=True)])
    undecided = undecided_characters(reference, tolerance, texts, "long_")
    expected = clear_entities(original_entities(reference, len(texts), "long_"), undecided)
    clear = clear_entities(predicted, undecided)
    return [
        span_f1("task: span F1, a text that is cut", clear, expected, tolerance.agreement, texts),
        score_difference(
            "scores, a text that is cut", clear, expected, tolerance.difference, texts
        ),
        slices_of_text("slices, a text that is cut", predicted, texts),
    ]
