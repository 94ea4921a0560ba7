"""Any text-classification pipeline: text -> the labels with their scores, the likeliest first.

text -> NAME_pre (tokenize, pad to a bucket) -> NAME_onnx -> NAME_post (softmax or sigmoid, top k)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ensembles.text_fields import (
    SHORT_TEXT,
    TEXT,
    TOKEN_COUNT,
    TOKENS,
    TRUNCATE,
    text_engine,
    text_tokenizer,
)
from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.model import Batching, ModelSpec, Pipeline, StepSpec, TensorSpec
from modelspec.names import Role, member_name

MAX_BATCH_SIZE = 32


@dataclass(frozen=True)
class Declaration:
    """``buckets`` are lengths in tokens, the last that of the longest text. ``function`` turns
    logits into scores: ``softmax``, or ``sigmoid`` where labels do not exclude each other."""

    name: str
    labels: Sequence[str]
    buckets: Sequence[int]
    pad_id: int
    function: str
    golden: Golden
    card: Mapping[str, Any] = field(default_factory=dict)

    def pipeline(self) -> Pipeline:
        pre = text_tokenizer(self.name, self.buckets, self.pad_id, MAX_BATCH_SIZE)
        members = (pre, self._engine(), self._labeller())
        return Pipeline(members, self._public())

    def _engine(self) -> ModelSpec:
        return text_engine(self.name, self._logits, self.buckets, self.pad_id, MAX_BATCH_SIZE)

    def _labeller(self) -> ModelSpec:
        return ModelSpec(
            name=member_name(self.name, Role.POST),
            backend="python",
            step="top_labels",
            max_batch_size=MAX_BATCH_SIZE,
            inputs=(self._logits,),
            outputs=self._predictions,
            batching=Batching(),
            parameters={"top_k": str(len(self.labels)), "function": self.function},
            versions=(1,),
            internal=True,
        )

    @property
    def _logits(self) -> TensorSpec:
        return TensorSpec("logits", "FP32", (len(self.labels),))

    @property
    def _predictions(self) -> tuple[TensorSpec, TensorSpec]:
        shape = (len(self.labels),)
        return TensorSpec("label", "BYTES", shape), TensorSpec("score", "FP32", shape)

    def _public(self) -> ModelSpec:
        tokens = {tensor.name: tensor.name for tensor in TOKENS}
        return ModelSpec(
            name=self.name,
            backend="ensemble",
            max_batch_size=MAX_BATCH_SIZE,
            inputs=(TEXT,),
            outputs=(*self._predictions, TOKEN_COUNT),
            steps=(
                StepSpec(
                    member_name(self.name, Role.PRE),
                    1,
                    {"text": "text"},
                    {**tokens, "token_count": "token_count"},
                ),
                StepSpec(member_name(self.name, Role.ENGINE), 1, tokens, {"logits": "logits"}),
                StepSpec(
                    member_name(self.name, Role.POST),
                    1,
                    {"logits": "logits"},
                    {"label": "label", "score": "score"},
                ),
            ),
            parameters=SHORT_TEXT,
            endpoint_schema=self._endpoint_schema(),
            golden=self.golden,
            deterministic=True,
        )

    def _endpoint_schema(self) -> EndpointSchema:
        return EndpointSchema(
            purpose=f"Say which of {len(self.labels)} labels fit a text, with scores.",
            request=_REQUEST,
            response=_RESPONSE,
            example=self.golden.request,
            card=self.card,
        )


def declare(
    name: str, metadata: Mapping[str, Any], golden: Golden, card: Mapping[str, Any]
) -> Pipeline:
    """The pipeline of a model with the metadata ``buckets``, ``pad_id``, ``labels`` and
    ``function``."""
    return Declaration(name, golden=golden, card=card, **metadata).pipeline()


_REQUEST = {
    "type": "object",
    "required": ["text"],
    "additionalProperties": False,
    "properties": {
        "text": {"type": "string", "minLength": 1, "maxLength": 65536, "x-tensor": "text"},
        "truncate": TRUNCATE,
    },
}
_RESPONSE = {
    "type": "object",
    "required": ["labels", "token_count"],
    "properties": {
        "labels": {
            "type": "array",
            "description": "The likeliest first.",
            "items": {
                "type": "object",
                "required": ["label", "score"],
                "properties": {
                    "label": {"type": "string", "x-tensor": "label"},
                    "score": {"type": "number", "x-tensor": "score"},
                },
            },
        },
        "token_count": {"type": "integer", "x-tensor": "token_count"},
    },
}
