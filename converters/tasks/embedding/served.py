"""Prove what Triton serves of an embedding: raw texts over gRPC, against the original's vectors."""

from collections.abc import Sequence

import numpy as np

from converters.proof.checks import Check, worst_difference
from converters.proof.reference import Reference
from converters.proof.served_client import ServedClient
from converters.tasks.embedding.checks import parity, typical_length
from converters.tasks.text.answered import reference_texts
from converters.tasks.text.served_text import ServedText
from converters.tasks.text.served_tokens import token_checks

VECTOR, COUNT = "sentence_embedding", "token_count"


def served_checks(address: str, reference: Reference) -> list[Check]:
    """Checks of the pipeline at ``address``, with requests of every form that clients send."""
    with ServedClient(address) as client:
        return checks_of(ServedText(client, reference.name), reference)


def checks_of(served: ServedText, reference: Reference) -> list[Check]:
    """The same checks of anything that responds as a served text pipeline does."""
    texts = reference_texts(reference)
    checks: list[Check] = []
    alone = np.empty(0)
    limit = reference.tolerance.invariance * typical_length(reference)
    for mode, responses in served.rounds(texts, (VECTOR, COUNT)):
        vectors = np.concatenate([response[VECTOR] for response in responses])
        counts = np.concatenate([response[COUNT] for response in responses])
        if mode == "alone":
            alone = vectors
            checks += parity(vectors, reference, texts)
        else:
            checks.append(worst_difference(f"the same {mode}", vectors, alone, limit, texts))
        checks.append(_counts(f"token counts, {mode}", counts, reference, texts))
    return [*checks, *token_checks(served, reference), *_truncated(served, reference)]


def _counts(name: str, counts: np.ndarray, reference: Reference, texts: Sequence[str]) -> Check:
    expected = reference.outputs["token_count"][:, None]
    return worst_difference(name, counts.astype(np.float64), expected, 0, texts)


def _truncated(served: ServedText, reference: Reference) -> list[Check]:
    """A text that is too long is cut as the original cuts it, and counted after the cut."""
    texts = [str(text) for text in reference.outputs["too_long"]]
    response = served.infer(texts, (VECTOR, COUNT), truncate=True)
    limit = reference.tolerance.difference * typical_length(reference)
    expected = reference.outputs["long_vectors"]
    bucket_lengths = np.full((len(texts), 1), reference.metadata["buckets"][-1])
    return [
        worst_difference("parity: a text that is cut", response[VECTOR], expected, limit, texts),
        worst_difference(
            "token counts, a text that is cut", response[COUNT], bucket_lengths, 0, texts
        ),
    ]
