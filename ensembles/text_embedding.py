"""``text_embedding``: text -> a normalised 384-dimensional vector (all-MiniLM-L6-v2).

text -> text_embedding_pre (tokenize, pad to a bucket) -> text_embedding_onnx -> vector
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ensembles.embedding import Declaration
from modelspec.golden import Golden
from modelspec.model import Pipeline

# all-MiniLM-L6-v2 was trained and is evaluated at 256 tokens (sentence_bert_config.json).
BUCKETS = (16, 32, 64, 128, 256)
MAX_BATCH_SIZE = 64

CARD = {
    "model": "sentence-transformers/all-MiniLM-L6-v2",
    "license": "Apache-2.0",
    "language": ["en"],
    "pipeline_tag": "sentence-similarity",
    "datasets": ["over a billion English sentence pairs, from S2ORC, MS MARCO, GooAQ and others"],
    "limits": "At most 256 tokens (about 1,000 characters); trained on English: other languages "
    "embed poorly.",
}

# From sentence-transformers; a conversion whose original gives another vector is refused.
GOLDEN = Golden(
    request={"text": "Where is my parcel?"},
    expect={
        "sentence_embedding": [
            0.03395,
            -0.01403,
            0.04374,
            -0.02395,
            0.06031,
            0.01265,
            0.0231,
            0.00287,
        ],
        "token_count": [7],
    },
    tolerance=1e-3,
)

_DECLARATION = Declaration(
    name="text_embedding",
    buckets=BUCKETS,
    pad_id=0,
    width=384,
    normalised=True,
    golden=GOLDEN,
    card=CARD,
    languages="English",
    max_batch_size=MAX_BATCH_SIZE,
)
PIPELINE = _DECLARATION.pipeline()
ENDPOINT_SCHEMA = PIPELINE.public.endpoint_schema


def declare(
    name: str, metadata: Mapping[str, object], golden: Golden, card: Mapping[str, object]
) -> Pipeline:
    """The committed pipeline; ValueError when the original does not match its declaration. Only
    another precision, or a model accepted despite a failed proof, gets a card that says so and,
    where needed, a wider golden tolerance."""
    _require_declared(metadata, golden)
    if card.get("precision") == "fp32" and "accepted_proof_failure" not in card:
        return PIPELINE
    wide = replace(GOLDEN, tolerance=max(GOLDEN.tolerance, golden.tolerance))
    return replace(_DECLARATION, golden=wide, card={**card, **CARD}).pipeline()


def _require_declared(metadata: Mapping[str, Any], golden: Golden) -> None:
    declared = {
        "buckets": list(BUCKETS),
        "pad_id": _DECLARATION.pad_id,
        "width": _DECLARATION.width,
        "normalised": _DECLARATION.normalised,
    }
    actual = {key: metadata[key] for key in declared}
    if {**actual, "buckets": list(actual["buckets"])} != declared:
        raise ValueError(f"the original has {actual}, and the declaration says {declared}")
    for tensor, expected in GOLDEN.expect.items():
        values = golden.expect[tensor]
        gaps = [
            abs(expected_value - value)
            for expected_value, value in zip(expected, values, strict=True)
        ]
        if golden.request != GOLDEN.request or not max(gaps) <= GOLDEN.tolerance:
            raise ValueError(
                f"the golden sample is not the original's: {tensor} of {golden.request} is "
                f"{values}, and the declaration says {expected} of {GOLDEN.request}"
            )
