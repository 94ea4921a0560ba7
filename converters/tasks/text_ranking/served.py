"""Prove what Triton serves of a cross-encoder: raw pairs over gRPC, against the original."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from tritonclient import grpc as triton

from converters.proof.checks import Check, at_most, worst_difference
from converters.proof.label_step import label_checks
from converters.proof.reference import Reference
from converters.proof.scores import parity
from converters.proof.served_client import ServedClient
from converters.tasks.text.answered import reference_texts
from converters.tasks.text.served_text import BATCH, ServedText, text_input
from converters.tasks.text.served_tokens import token_checks
from converters.tasks.text_ranking.pairs import TYPES, parts
from modelspec.names import Role, member_name

OUTPUTS = ("score", "token_count")


class ServedPairs(ServedText):
    """As ``ServedText``, whose texts are pairs."""

    samples: ClassVar[str] = "pairs"

    def _inputs(self, texts: Sequence[str]) -> list[triton.InferInput]:
        columns = zip(*map(parts, texts), strict=True)
        return [
            text_input(name, column)
            for name, column in zip(("query", "text"), columns, strict=True)
        ]

    def types(self, texts: Sequence[str], truncate: bool = False) -> np.ndarray:
        """INT64 [n, bucket]: which tokens the first step says are the passage's."""
        model = member_name(self._model, Role.PRE)
        return self._infer(model, texts, (TYPES,), truncate)[TYPES]


def served_checks(address: str, reference: Reference) -> list[Check]:
    """Checks of the pipeline at ``address``, with requests of every form that clients send."""
    texts = reference_texts(reference)
    checks: list[Check] = []
    alone = np.empty(0)
    with ServedClient(address) as client:
        served = ServedPairs(client, reference.name)
        for mode, responses in served.rounds(texts, OUTPUTS):
            scores = np.concatenate([response["score"] for response in responses])
            if mode == "alone":
                alone = scores
                counts = np.concatenate([response["token_count"] for response in responses])
                expected = reference.outputs["token_count"][:, None]
                checks += [
                    *parity(scores, reference, texts),
                    worst_difference("token counts", counts.astype(float), expected, 0, texts),
                ]
            else:
                limit = reference.tolerance.invariance
                checks.append(worst_difference(f"the same {mode}", scores, alone, limit, texts))
        return [
            *checks,
            *token_checks(served, reference),
            *(_type_checks(served, reference) if reference.metadata["has_types"] else ()),
            *label_checks(client, reference),
            _truncated(served, reference),
        ]


def _type_checks(served: ServedPairs, reference: Reference) -> list[Check]:
    """The first step tells a query's tokens from a passage's as the original's tokenizer does."""
    texts = reference_texts(reference)
    too_long = [str(text) for text in reference.outputs["too_long"]]
    ends = np.cumsum(reference.outputs["token_count"])[:-1]
    types = np.split(reference.outputs["token_types"], ends)
    long_types = np.split(reference.outputs["long_token_types"], len(too_long))
    return [
        _same_types("token types", served, texts, types, False),
        _same_types("token types of a pair that is cut", served, too_long, long_types, True),
    ]


def _same_types(
    title: str,
    served: ServedPairs,
    texts: Sequence[str],
    expected: Sequence[np.ndarray],
    truncate: bool,
) -> Check:
    wrong = []
    for start in range(0, len(texts), BATCH):
        rows = texts[start : start + BATCH]
        actual = served.types(rows, truncate)
        for text, row, original in zip(rows, actual, expected[start : start + BATCH], strict=True):
            if not (row[: len(original)] == original).all() or row[len(original) :].any():
                wrong.append(f"{text[:60]!r}")
    return at_most(f"{title}: pairs with others", len(wrong), 0, wrong[0] if wrong else "")


def _truncated(served: ServedPairs, reference: Reference) -> Check:
    """A pair that is too long is cut as the original cuts it."""
    texts = [str(text) for text in reference.outputs["too_long"]]
    scores = served.infer(texts, ("score",), truncate=True)["score"]
    expected = reference.outputs["long_scores"]
    limit = reference.tolerance.difference
    return worst_difference("parity: a pair that is cut", scores, expected, limit, texts)
