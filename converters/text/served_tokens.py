"""The first step of a served text pipeline, asked by itself: its tokens are the original's.

Whatever a precision may round off of the answers, a token is right or wrong: another case, a lost
accent, a text cut from the other side would hide within what 8 bits may cost.
"""

from collections.abc import Sequence

import numpy as np

from converters.proof import Check, at_most
from converters.task import Reference
from converters.text.answered import case_texts
from converters.text.served import BATCH, ServedText

IDS, LONG_IDS = "token_ids", "long_token_ids"


def token_checks(served: ServedText, reference: Reference) -> list[Check]:
    """Every text's ids, padding and mask, in batches, and those of the texts that are cut."""
    texts = case_texts(reference)
    too_long = [str(text) for text in reference.answers["too_long"]]
    ends = np.cumsum(reference.answers["token_count"])[:-1]
    cut = np.split(reference.answers[LONG_IDS], len(too_long))
    return [
        _same("tokens", served, reference, texts, np.split(reference.answers[IDS], ends), False),
        _same("tokens of a text that is cut", served, reference, too_long, cut, True),
    ]


def _same(
    what: str,
    served: ServedText,
    reference: Reference,
    texts: Sequence[str],
    wanted: Sequence[np.ndarray],
    truncate: bool,
) -> Check:
    wrong = []
    for start in range(0, len(texts), BATCH):
        rows = texts[start : start + BATCH]
        ids, masks = served.tokens(rows, truncate)
        theirs = wanted[start : start + BATCH]
        wrong += [
            f"{text[:60]!r}: {mine[: len(right) + 1].tolist()[:12]}, original {right.tolist()[:12]}"
            for text, mine, mask, right in zip(rows, ids, masks, theirs, strict=True)
            if not _is_padded(mine, mask, right, reference.metadata["pad_id"])
        ]
    return at_most(f"{what}: texts with others", len(wrong), 0, wrong[0] if wrong else "")


def _is_padded(ids: np.ndarray, mask: np.ndarray, right: np.ndarray, pad_id: int) -> bool:
    """Whether a row is the ``right`` ids, and then padding that the mask leaves out."""
    padding = np.arange(len(ids)) >= len(right)
    expected = np.full(len(ids), pad_id)
    if len(right) > len(ids):
        return False
    expected[: len(right)] = right
    return bool((ids == expected).all() and (mask == ~padding).all())
