"""Prove what Triton serves of a token classifier: raw texts over gRPC, against the original."""

from collections.abc import Sequence

import numpy as np
from tritonclient import grpc as triton

from converters.proof import Check, at_least, worst_difference
from converters.task import Reference
from converters.text.answered import case_texts
from converters.text.entities import (
    Found,
    clear_texts,
    original_entities,
    score_difference,
    served_entities,
    slices_of_text,
    span_f1,
)
from converters.text.served import ServedText
from converters.text.served_tokens import token_checks

OUTPUTS = ("entity", "start", "end", "label", "score", "count", "token_count")


def served_checks(address: str, reference: Reference) -> list[Check]:
    """Checks of the pipeline at ``address``, asked in every way that a client may ask."""
    with triton.InferenceServerClient(address) as client:
        return checks_of(ServedText(client, reference.name), reference)


def checks_of(served: ServedText, reference: Reference) -> list[Check]:
    """The same, of anything that answers as a served text pipeline does."""
    texts, allowed = case_texts(reference), reference.tolerance
    wanted, clear = original_entities(reference, len(texts)), clear_texts(reference, allowed)
    checks = [_enough(wanted, clear)]
    alone: list[Found] = []
    for how, answers in served.rounds(texts, OUTPUTS):
        found = served_entities(answers)
        limit, expected = allowed.invariance, alone
        if how == "alone":
            alone, limit, expected = found, allowed.difference, wanted
        scores = f"largest difference of an entity's score, {how}"
        counts = np.concatenate([answer["token_count"] for answer in answers])
        checks += [
            span_f1(f"task: span F1, {how}", found, wanted, clear, allowed.agreement, texts),
            score_difference(scores, found, expected, limit, texts),
            slices_of_text(f"entities that are no slice of their text, {how}", found, texts),
            _counts(f"token counts, {how}", counts, reference, texts),
        ]
    return [*checks, *token_checks(served, reference), *_truncated(served, reference)]


def _enough(wanted: Sequence[Found], clear: Sequence[bool]) -> Check:
    """Without an entity to find, finding none proves nothing."""
    entities = sum(len(found.spans) for found, counts in zip(wanted, clear, strict=True) if counts)
    return at_least("entities that the original finds in the samples", entities, 1)


def _counts(name: str, counts: np.ndarray, reference: Reference, texts: Sequence[str]) -> Check:
    wanted = reference.answers["token_count"][:, None]
    return worst_difference(name, counts.astype(np.float64), wanted, 0, texts)


def _truncated(served: ServedText, reference: Reference) -> list[Check]:
    """A text that is too long is cut as the original cuts it."""
    texts, allowed = [str(text) for text in reference.answers["too_long"]], reference.tolerance
    found = served_entities([served.answer(texts, OUTPUTS, truncate=True)])
    wanted = original_entities(reference, len(texts), "long_")
    clear = clear_texts(reference, allowed, "long_")
    name = "task: span F1, a text that is cut"
    return [
        span_f1(name, found, wanted, clear, allowed.agreement, texts),
        score_difference("scores, a text that is cut", found, wanted, allowed.difference, texts),
        slices_of_text("slices, a text that is cut", found, texts),
    ]
