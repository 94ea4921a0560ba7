"""Prove what Triton serves of an embedding: raw texts over gRPC, against the original's vectors."""

from collections.abc import Sequence

import numpy as np
from tritonclient import grpc as triton

from converters.proof import Check, worst_difference
from converters.task import Reference
from converters.text.answered import case_texts
from converters.text.embedding_proof import parity, typical_length
from converters.text.served import ServedText
from converters.text.served_tokens import token_checks

VECTOR, COUNT = "sentence_embedding", "token_count"


def served_checks(address: str, reference: Reference) -> list[Check]:
    """Checks of the pipeline at ``address``, asked in every way that a client may ask."""
    with triton.InferenceServerClient(address) as client:
        return checks_of(ServedText(client, reference.name), reference)


def checks_of(served: ServedText, reference: Reference) -> list[Check]:
    """The same, of anything that answers as a served text pipeline does."""
    texts = case_texts(reference)
    checks: list[Check] = []
    alone = np.empty(0)
    limit = reference.tolerance.invariance * typical_length(reference)
    for how, answers in served.rounds(texts, (VECTOR, COUNT)):
        vectors = np.concatenate([answer[VECTOR] for answer in answers])
        counts = np.concatenate([answer[COUNT] for answer in answers])
        if how == "alone":
            alone = vectors
            checks += parity(vectors, reference, texts)
        else:
            checks.append(worst_difference(f"the same {how}", vectors, alone, limit, texts))
        checks.append(_counts(f"token counts, {how}", counts, reference, texts))
    return [*checks, *token_checks(served, reference), *_truncated(served, reference)]


def _counts(name: str, counts: np.ndarray, reference: Reference, texts: Sequence[str]) -> Check:
    wanted = reference.answers["token_count"][:, None]
    return worst_difference(name, counts.astype(np.float64), wanted, 0, texts)


def _truncated(served: ServedText, reference: Reference) -> list[Check]:
    """A text that is too long is cut as the original cuts it, and counted as it was cut."""
    texts = [str(text) for text in reference.answers["too_long"]]
    answer = served.answer(texts, (VECTOR, COUNT), truncate=True)
    limit = reference.tolerance.difference * typical_length(reference)
    wanted = reference.answers["long_vectors"]
    full = np.full((len(texts), 1), reference.metadata["buckets"][-1])
    return [
        worst_difference("parity: a text that is cut", answer[VECTOR], wanted, limit, texts),
        worst_difference("token counts, a text that is cut", answer[COUNT], full, 0, texts),
    ]
