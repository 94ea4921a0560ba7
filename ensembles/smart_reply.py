"""``smart_reply``: message -> the answer of a knowledge base, with its source, or a hand-over.

text -> EMBEDDING_pre -> EMBEDDING_onnx -> smart_reply_post (the nearest answers)

The knowledge base is a version of the pipeline: its entries and their vectors are files of the last
step. The first two steps are those of an embedding pipeline that reads the entries' language
(``text_embedding``, ``multilingual_embedding``), pinned at the versions that wrote these vectors,
so a message and an entry are always embedded by the same graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ensembles.embedding import VECTOR
from ensembles.text_fields import LANGUAGE, SHORT_TEXT, TEXT, TOKEN_COUNT, TOKENS, text_request
from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.model import Batching, Instances, ModelSpec, Pipeline, StepSpec, TensorSpec
from modelspec.names import Role, member_name

NAME = "smart_reply"
LANGUAGE_MODEL = "chat"
PASSAGES = 3
_PASSAGE_TEXTS = ("text", "question", "source")
OUTPUTS = (
    TensorSpec("reply", "BYTES", (1,)),
    TensorSpec("source", "BYTES", (1,)),
    TensorSpec("confidence", "FP32", (1,)),
    TensorSpec("hand_over", "BOOL", (1,)),
    TensorSpec("from", "BYTES", (1,)),
    TensorSpec("passage_count", "INT32", (1,)),
    *(TensorSpec(f"passage_{name}", "BYTES", (PASSAGES,)) for name in _PASSAGE_TEXTS),
    TensorSpec("passage_score", "FP32", (PASSAGES,)),
)


@dataclass(frozen=True)
class EmbeddingSteps:
    """The members of the embedding pipeline that embed the messages, with their versions: the
    tokenizer and the engine."""

    tokenizer: tuple[str, int]
    engine: tuple[str, int]
    width: int
    max_batch_size: int


def declare(steps: EmbeddingSteps, golden: Golden, card: Mapping[str, Any]) -> Pipeline:
    """The pipeline; its one member of its own is the last step."""
    vector = TensorSpec(VECTOR, "FP32", (steps.width,))
    nearest = ModelSpec(
        name=member_name(NAME, Role.POST),
        backend="python",
        step="nearest_answers",
        max_batch_size=steps.max_batch_size,
        inputs=(vector, TEXT),
        outputs=OUTPUTS,
        instances=Instances(count=1),
        batching=Batching(),
        parameters={"passages": str(PASSAGES)},
        versions=(1,),
        internal=True,
    )
    tokens = {tensor.name: tensor.name for tensor in TOKENS}
    public = ModelSpec(
        name=NAME,
        backend="ensemble",
        max_batch_size=steps.max_batch_size,
        inputs=(TEXT,),
        outputs=(*OUTPUTS, TOKEN_COUNT),
        steps=(
            StepSpec(*steps.tokenizer, {"text": "text"}, {**tokens, "token_count": "token_count"}),
            StepSpec(*steps.engine, tokens, {VECTOR: VECTOR}),
            StepSpec(
                nearest.name,
                1,
                {VECTOR: VECTOR, "text": "text"},
                {tensor.name: tensor.name for tensor in OUTPUTS},
            ),
        ),
        parameters=SHORT_TEXT,
        endpoint_schema=EndpointSchema(
            purpose="Answer a message from a knowledge base, with the source, or hand it over.",
            request=text_request("A customer's message.", language=_SPOKEN),
            response=_RESPONSE,
            example=golden.request,
            card=card,
            # From the passages of a message that it has no sure answer to.
            openai={"grounded_reply": {"model": LANGUAGE_MODEL, "message": "text"}},
        ),
        golden=golden,
        deterministic=True,
    )
    return Pipeline((nearest,), public)


def _scalar(kind: str, tensor: str, description: str) -> dict[str, object]:
    return {"type": kind, "description": description, "x-tensor": tensor}


_SPOKEN = {
    **LANGUAGE,
    "description": "The language to say in that nothing is known (en, zh); the message's by "
    "default.",
}
_RESPONSE = {
    "type": "object",
    "required": ["reply", "source", "confidence", "passages", "hand_over", "from", "token_count"],
    "properties": {
        "reply": _scalar("string", "reply", "The answer, or that none is known."),
        "source": _scalar("string", "source", "Where the answer stands; empty if none is known."),
        "confidence": _scalar(
            "number", "confidence", "The cosine of the message and the nearest entry."
        ),
        "passages": {
            "type": "array",
            "description": "What the knowledge base says of it, the nearest first.",
            "x-count": "passage_count",
            "items": {
                "type": "object",
                "required": ["text", "question", "source", "score"],
                "properties": {
                    "text": {"type": "string", "x-tensor": "passage_text"},
                    "question": {"type": "string", "x-tensor": "passage_question"},
                    "source": {"type": "string", "x-tensor": "passage_source"},
                    "score": {"type": "number", "x-tensor": "passage_score"},
                },
            },
        },
        "hand_over": _scalar("boolean", "hand_over", "Whether a person should answer."),
        "from": _scalar("string", "from", "knowledge_base, language_model or none."),
        "token_count": _scalar("integer", "token_count", "Tokens of the message."),
    },
}
