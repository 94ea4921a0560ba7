"""Any embedding pipeline: text -> a vector; near vectors mean near meanings.

text -> NAME_pre (tokenize, pad to a bucket) -> NAME_onnx -> vector
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ensembles.text_fields import (
    SHORT_TEXT,
    TEXT,
    TOKEN_COUNT,
    TOKENS,
    text_engine,
    text_request,
    text_tokenizer,
)
from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.model import ModelSpec, Pipeline, StepSpec, TensorSpec
from modelspec.names import Role, member_name

VECTOR = "sentence_embedding"


@dataclass(frozen=True)
class Declaration:
    """``buckets`` are lengths in tokens, the last that of the longest text; ``width`` is the number
    of elements of a vector, whose length is 1 if ``normalised``."""

    name: str
    buckets: Sequence[int]
    pad_id: int
    width: int
    normalised: bool
    golden: Golden
    card: Mapping[str, Any] = field(default_factory=dict)
    languages: str = ""
    max_batch_size: int = 32

    def pipeline(self) -> Pipeline:
        rows = self.max_batch_size
        pre = text_tokenizer(self.name, self.buckets, self.pad_id, rows)
        engine = text_engine(self.name, self._vector, self.buckets, self.pad_id, rows)
        return Pipeline((pre, engine), self._public())

    @property
    def _vector(self) -> TensorSpec:
        return TensorSpec(VECTOR, "FP32", (self.width,))

    def _public(self) -> ModelSpec:
        tokens = {tensor.name: tensor.name for tensor in TOKENS}
        outputs = {**tokens, "token_count": "token_count"}
        return ModelSpec(
            name=self.name,
            backend="ensemble",
            max_batch_size=self.max_batch_size,
            inputs=(TEXT,),
            outputs=(self._vector, TOKEN_COUNT),
            steps=(
                StepSpec(member_name(self.name, Role.PRE), 1, {"text": "text"}, outputs),
                StepSpec(member_name(self.name, Role.ENGINE), 1, tokens, {VECTOR: VECTOR}),
            ),
            parameters=SHORT_TEXT,
            endpoint_schema=self._endpoint_schema(),
            golden=self.golden,
            deterministic=True,
        )

    def _endpoint_schema(self) -> EndpointSchema:
        metric = "dot product" if self.normalised else "cosine"
        text = f"{self.languages} text".strip().capitalize()
        return EndpointSchema(
            purpose=f"Turn a text into a vector: near vectors (by {metric}) mean near meanings.",
            request=text_request(f"{text} of at most {self.buckets[-1]} tokens."),
            response=self._response(),
            example=self.golden.request,
            card=self.card,
            openai={"embeddings": {"text": "text", "vector": VECTOR, "tokens": "token_count"}},
        )

    def _response(self) -> Mapping[str, object]:
        return {
            "type": "object",
            "required": ["embedding", "token_count"],
            "properties": {
                "embedding": {
                    "type": "array",
                    "items": {"type": "number"},
                    "minItems": self.width,
                    "maxItems": self.width,
                    "description": "Unit length." if self.normalised else "Of any length.",
                    "x-tensor": VECTOR,
                },
                "token_count": {
                    "type": "integer",
                    "description": "Tokens that the model read, special tokens included.",
                    "x-tensor": "token_count",
                },
            },
        }


def declare(
    name: str, metadata: Mapping[str, Any], golden: Golden, card: Mapping[str, Any]
) -> Pipeline:
    """The pipeline of a model with the metadata ``buckets``, ``pad_id``, ``width`` and
    ``normalised``."""
    return Declaration(name, golden=golden, card=card, **metadata).pipeline()
