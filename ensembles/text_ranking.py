"""Any cross-encoder: a query and a passage -> how relevant the passage is, from 0 to 1.

query, text -> NAME_pre (tokenize the pair, pad to a bucket) -> NAME_onnx -> NAME_post (sigmoid)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ensembles.engine import onnx_engine
from ensembles.text_fields import SHORT_TEXT, TEXT, TOKEN_COUNT, TOKENS, TRUNCATE
from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.model import Batching, ModelSpec, Pipeline, StepSpec, TensorSpec
from modelspec.names import Role, member_name

MAX_BATCH_SIZE = 32
QUERY = TensorSpec("query", "BYTES", (1,))
TYPES = TensorSpec("token_type_ids", "INT64", (-1,))
LOGITS = TensorSpec("logits", "FP32", (1,))
SCORE = TensorSpec("score", "FP32", (1,))


@dataclass(frozen=True)
class Declaration:
    """``buckets`` are lengths in tokens, the last that of the longest pair. With ``has_types`` the
    model is told which tokens are the passage's. ``labels`` (one) and ``function`` are those of the
    last step."""

    name: str
    buckets: Sequence[int]
    pad_id: int
    has_types: bool
    labels: Sequence[str]
    function: str
    golden: Golden
    card: Mapping[str, Any] = field(default_factory=dict)

    def pipeline(self) -> Pipeline:
        padding = ("attention_mask", self.pad_id)
        engine = onnx_engine(
            self.name, self._tokens, (LOGITS,), MAX_BATCH_SIZE, self.buckets, padding
        )
        return Pipeline((self._tokenizer(), engine, self._scorer()), self._public())

    @property
    def _tokens(self) -> tuple[TensorSpec, ...]:
        return (*TOKENS, TYPES) if self.has_types else TOKENS

    def _tokenizer(self) -> ModelSpec:
        return ModelSpec(
            name=member_name(self.name, Role.PRE),
            backend="python",
            step="tokenize_pairs",
            max_batch_size=MAX_BATCH_SIZE,
            inputs=(QUERY, TEXT),
            outputs=(*self._tokens, TOKEN_COUNT),
            batching=Batching(),
            parameters={"buckets": ",".join(map(str, self.buckets)), "pad_id": str(self.pad_id)},
            versions=(1,),
            internal=True,
        )

    def _scorer(self) -> ModelSpec:
        return ModelSpec(
            name=member_name(self.name, Role.POST),
            backend="python",
            step="top_labels",
            max_batch_size=MAX_BATCH_SIZE,
            inputs=(LOGITS,),
            outputs=(TensorSpec("label", "BYTES", (1,)), SCORE),
            batching=Batching(),
            parameters={"top_k": "1", "function": self.function},
            versions=(1,),
            internal=True,
        )

    def _public(self) -> ModelSpec:
        tokens = {tensor.name: tensor.name for tensor in self._tokens}
        pre, engine, post = (
            member_name(self.name, role) for role in (Role.PRE, Role.ENGINE, Role.POST)
        )
        return ModelSpec(
            name=self.name,
            backend="ensemble",
            max_batch_size=MAX_BATCH_SIZE,
            inputs=(QUERY, TEXT),
            outputs=(SCORE, TOKEN_COUNT),
            steps=(
                StepSpec(
                    pre,
                    1,
                    {"query": "query", "text": "text"},
                    {**tokens, "token_count": "token_count"},
                ),
                StepSpec(engine, 1, tokens, {"logits": "logits"}),
                StepSpec(post, 1, {"logits": "logits"}, {"score": "score"}),
            ),
            parameters=SHORT_TEXT,
            endpoint_schema=self._endpoint_schema(),
            golden=self.golden,
            deterministic=True,
        )

    def _endpoint_schema(self) -> EndpointSchema:
        binding = {"query": "query", "text": "text", "score": "score", "tokens": "token_count"}
        return EndpointSchema(
            purpose="Say how relevant a passage is to a query, from 0 to 1.",
            request=_REQUEST,
            response=_RESPONSE,
            example=self.golden.request,
            card=self.card,
            openai={"rerank": binding},
        )


def declare(
    name: str, metadata: Mapping[str, Any], golden: Golden, card: Mapping[str, Any]
) -> Pipeline:
    """The pipeline of a model with the metadata ``buckets``, ``pad_id``, ``has_types``, ``labels``
    and ``function``."""
    return Declaration(name, golden=golden, card=card, **metadata).pipeline()


def _text(tensor: str) -> dict[str, object]:
    return {"type": "string", "minLength": 1, "maxLength": 65536, "x-tensor": tensor}


_REQUEST = {
    "type": "object",
    "required": ["query", "text"],
    "additionalProperties": False,
    "properties": {"query": _text("query"), "text": _text("text"), "truncate": TRUNCATE},
}
_RESPONSE = {
    "type": "object",
    "required": ["score", "token_count"],
    "properties": {
        "score": {"type": "number", "x-tensor": "score"},
        "token_count": {"type": "integer", "x-tensor": "token_count"},
    },
}
