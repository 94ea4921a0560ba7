"""Prove what Triton serves of an embedding: raw texts over gRPC, against the original's vectors."""

from collections.abc import Sequence

import numpy as np
from tritonclient import grpc as triton

from converters.proof import Check, worst_difference
from converters.task import Case
from converters.texts.answered import case_texts
from converters.texts.embedding_proof import parity, typical_length
from converters.texts.served import ServedText
from converters.texts.served_tokens import token_checks

VECTOR, COUNT = "sentence_embedding", "token_count"


def served_checks(address: str, case: Case) -> list[Check]:
    """Checks of the pipeline at ``address``, asked in every way that a client may ask."""
    with triton.InferenceServerClient(address) as client:
        return checks_of(ServedText(client, case.name), case)


def checks_of(served: ServedText, case: Case) -> list[Check]:
    """The same, of anything that answers as a served text pipeline does."""
    texts = case_texts(case)
    checks: list[Check] = []
    alone = np.empty(0)
    limit = case.tolerance.invariance * typical_length(case)
    for how, answers in served.rounds(texts, (VECTOR, COUNT)):
        vectors = np.concatenate([answer[VECTOR] for answer in answers])
        counts = np.concatenate([answer[COUNT] for answer in answers])
        if how == "alone":
            alone = vectors
            checks += parity(vectors, case, texts)
        else:
            checks.append(worst_difference(f"the same {how}", vectors, alone, limit, texts))
        checks.append(_counts(f"token counts, {how}", counts, case, texts))
    return [*checks, *token_checks(served, case), *_truncated(served, case)]


def _counts(name: str, counts: np.ndarray, case: Case, texts: Sequence[str]) -> Check:
    wanted = case.answers["token_count"][:, None]
    return worst_difference(name, counts.astype(np.float64), wanted, 0, texts)


def _truncated(served: ServedText, case: Case) -> list[Check]:
    """A text that is too long is cut as the original cuts it, and counted as it was cut."""
    texts = [str(text) for text in case.answers["too_long"]]
    answer = served.answer(texts, (VECTOR, COUNT), truncate=True)
    limit = case.tolerance.difference * typical_length(case)
    wanted = case.answers["long_vectors"]
    full = np.full((len(texts), 1), case.facts["buckets"][-1])
    return [
        worst_difference("parity: a text that is cut", answer[VECTOR], wanted, limit, texts),
        worst_difference("token counts, a text that is cut", answer[COUNT], full, 0, texts),
    ]
