"""Prove the first step of a served text pipeline by itself: its tokens are the original's.

Whatever a precision rounds off the outputs, a token is right or wrong: a letter of the wrong case,
a lost accent, a text cut from the wrong side could hide in the tolerance of 8 bits.
"""

from collections.abc import Sequence

import numpy as np

from converters.proof.checks import Check, at_most
from converters.proof.reference import Reference
from converters.tasks.text.answered import reference_texts
from converters.tasks.text.served_text import BATCH, ServedText

IDS, LONG_IDS = "token_ids", "long_token_ids"


def token_checks(served: ServedText, reference: Reference) -> list[Check]:
    """The ids, padding and mask of every text, in batches, and those of the texts that are cut."""
    texts = reference_texts(reference)
    too_long = [str(text) for text in reference.outputs["too_long"]]
    ends = np.cumsum(reference.outputs["token_count"])[:-1]
    long_ids = np.split(reference.outputs[LONG_IDS], len(too_long))
    return [
        _same("tokens", served, reference, texts, np.split(reference.outputs[IDS], ends), False),
        _same("tokens of a text that is cut", served, reference, too_long, long_ids, True),
    ]


def _same(
    title: str,
    served: ServedText,
    reference: Reference,
    texts: Sequence[str],
    expected: Sequence[np.ndarray],
    truncate: bool,
) -> Check:
    wrong = []
    for start in range(0, len(texts), BATCH):
        rows = texts[start : start + BATCH]
        ids, masks = served.tokens(rows, truncate)
        expected_rows = expected[start : start + BATCH]
        wrong += [
            f"{text[:60]!r}: {row[: len(original) + 1].tolist()[:12]}, "
            f"original {original.tolist()[:12]}"
            for text, row, mask, original in zip(rows, ids, masks, expected_rows, strict=True)
            if not _is_padded(row, mask, original, reference.metadata["pad_id"])
        ]
    return at_most(f"{title}: texts with others", len(wrong), 0, wrong[0] if wrong else "")


def _is_padded(ids: np.ndarray, mask: np.ndarray, expected: np.ndarray, pad_id: int) -> bool:
    """Whether a row is the ``expected`` ids, then padding that the mask leaves out."""
    padding = np.arange(len(ids)) >= len(expected)
    padded = np.full(len(ids), pad_id)
    if len(expected) > len(ids):
        return False
    padded[: len(expected)] = expected
    return bool((ids == padded).all() and (mask == ~padding).all())
