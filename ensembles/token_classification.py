"""Any token-classification pipeline: text -> the entities in it, with scores.

text -> NAME_pre (tokenize, pad to a bucket) -> NAME_onnx (a label for each token)
     -> NAME_post (joins tokens into entities)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ensembles.text_fields import (
    SHORT_TEXT,
    TEXT,
    TOKEN_COUNT,
    TOKEN_SPAN,
    TOKENS,
    text_engine,
    text_request,
    text_tokenizer,
)
from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.model import Batching, ModelSpec, Pipeline, StepSpec, TensorSpec
from modelspec.names import Role, member_name

MAX_BATCH_SIZE = 32
ENTITY = (
    # Not ``text``, which is the input: all tensors of an ensemble share one namespace.
    TensorSpec("entity", "BYTES", (-1,)),
    TensorSpec("start", "INT32", (-1,)),
    TensorSpec("end", "INT32", (-1,)),
    TensorSpec("label", "BYTES", (-1,)),
    TensorSpec("score", "FP32", (-1,)),
)
COUNT = TensorSpec("count", "INT32", (1,))
REDACTED = TensorSpec("redacted", "BYTES", (1,))
REDACT = {
    "type": "boolean",
    "default": False,
    "description": "Also return the text with its names, telephone numbers, mail addresses, "
    "card and Chinese identity numbers masked.",
    "x-parameter": "redact",
}


@dataclass(frozen=True)
class Declaration:
    """``labels`` are the tokens' (``B-PER``, ...), ``buckets`` lengths in tokens, the last that of
    the longest text."""

    name: str
    labels: Sequence[str]
    buckets: Sequence[int]
    pad_id: int
    golden: Golden
    card: Mapping[str, Any] = field(default_factory=dict)

    def pipeline(self) -> Pipeline:
        pre = text_tokenizer(self.name, self.buckets, self.pad_id, MAX_BATCH_SIZE, spans=True)
        engine = text_engine(self.name, self._logits, self.buckets, self.pad_id, MAX_BATCH_SIZE)
        return Pipeline((pre, engine, self._entity_finder()), self._public())

    @property
    def _logits(self) -> TensorSpec:
        return TensorSpec("logits", "FP32", (-1, len(self.labels)))

    def _entity_finder(self) -> ModelSpec:
        return ModelSpec(
            name=member_name(self.name, Role.POST),
            backend="python",
            step="label_entities",
            max_batch_size=MAX_BATCH_SIZE,
            inputs=(self._logits, TOKEN_SPAN, TEXT),
            outputs=(*ENTITY, COUNT, REDACTED),
            batching=Batching(),
            versions=(1,),
            internal=True,
        )

    def _public(self) -> ModelSpec:
        tokens = {tensor.name: tensor.name for tensor in TOKENS}
        return ModelSpec(
            name=self.name,
            backend="ensemble",
            max_batch_size=MAX_BATCH_SIZE,
            inputs=(TEXT,),
            outputs=(*ENTITY, COUNT, TOKEN_COUNT, REDACTED),
            steps=(
                StepSpec(
                    member_name(self.name, Role.PRE),
                    1,
                    {"text": "text"},
                    {**tokens, "token_count": "token_count", "token_span": "token_span"},
                ),
                StepSpec(member_name(self.name, Role.ENGINE), 1, tokens, {"logits": "logits"}),
                StepSpec(
                    member_name(self.name, Role.POST),
                    1,
                    {"logits": "logits", "token_span": "token_span", "text": "text"},
                    {tensor.name: tensor.name for tensor in (*ENTITY, COUNT, REDACTED)},
                ),
            ),
            parameters=SHORT_TEXT,
            endpoint_schema=self._endpoint_schema(),
            golden=self.golden,
            deterministic=True,
        )

    def _endpoint_schema(self) -> EndpointSchema:
        return EndpointSchema(
            purpose=f"Find the entities in a text: {', '.join(self._entity_labels())}.",
            request=text_request(f"Text of at most {self.buckets[-1]} tokens.", redact=REDACT),
            response=_RESPONSE,
            example=self.golden.request,
            card=self.card,
        )

    def _entity_labels(self) -> list[str]:
        """The labels of entities: the tokens' without ``B-`` and ``I-``."""
        labels = dict.fromkeys(label.split("-", 1)[-1] for label in self.labels)
        return [label for label in labels if label != "O"]


def declare(
    name: str, metadata: Mapping[str, Any], golden: Golden, card: Mapping[str, Any]
) -> Pipeline:
    """The pipeline of a model with the metadata ``buckets``, ``pad_id`` and ``labels``."""
    return Declaration(name, golden=golden, card=card, **metadata).pipeline()


_RESPONSE = {
    "type": "object",
    "required": ["entities", "token_count"],
    "properties": {
        "entities": {
            "type": "array",
            "description": "In the order of the text.",
            "x-count": "count",
            "items": {
                "type": "object",
                "required": ["text", "start", "end", "label", "score"],
                "properties": {
                    "text": {
                        "type": "string",
                        "description": "The text from start to end.",
                        "x-tensor": "entity",
                    },
                    "start": {
                        "type": "integer",
                        "description": "In Unicode code points, from 0.",
                        "x-tensor": "start",
                    },
                    "end": {
                        "type": "integer",
                        "description": "The first code point after it.",
                        "x-tensor": "end",
                    },
                    "label": {"type": "string", "x-tensor": "label"},
                    "score": {
                        "type": "number",
                        "description": "The mean of its tokens' probabilities.",
                        "x-tensor": "score",
                    },
                },
            },
        },
        "redacted": {
            "type": "string",
            "description": "The text as far as it was read, with a label such as [PER] in place of "
            "each name, number and address; only if the request says redact.",
            "x-tensor": "redacted",
            "x-null": "",
        },
        "token_count": {"type": "integer", "x-tensor": "token_count"},
    },
}
