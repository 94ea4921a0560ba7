"""``customer_service``: one message -> its topic, sentiment, entities and an answer to it.

text -> customer_service_post (asks text_classification twice, entity_recognition and smart_reply,
        all at the same time)

An ensemble would fail with any of its steps; this step names the one that failed and returns the
rest. It asks the pipelines by name, so each answers in the version that is active.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ensembles.text_fields import LANGUAGE, TEXT, text_request
from ensembles.token_classification import REDACT
from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.model import Batching, Instances, ModelSpec, Pipeline, StepSpec, TensorSpec
from modelspec.names import Role, member_name

NAME = "customer_service"
MAX_BATCH_SIZE = 32
# While one instance waits for the pipelines, another asks.
INSTANCES = 2
MEMBERS = ("text_classification", "entity_recognition", "smart_reply")


@dataclass(frozen=True)
class Call:
    """A request to another pipeline; ``outputs``: its output tensor -> ours. ``failed``: our
    outputs that are not empty, 0 or false if it does not answer."""

    name: str
    pipeline: str
    outputs: Mapping[str, str]
    parameters: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, bool] = field(default_factory=dict)


def _classification(name: str, task: str) -> Call:
    outputs = {
        "labels": f"{name}_label",
        "scores": f"{name}_score",
        "label_count": f"{name}_count",
        "language": "language",
    }
    return Call(name, "text_classification", outputs, {"task": task})


CALLS = (
    _classification("topic", "topic_classification"),
    _classification("sentiment", "sentiment"),
    Call(
        "entities",
        "entity_recognition",
        {
            "entity": "entity",
            "start": "start",
            "end": "end",
            "label": "entity_label",
            "score": "entity_score",
            "count": "entity_count",
            "redacted": "redacted",
        },
    ),
    Call(
        "reply",
        "smart_reply",
        {name: name for name in ("reply", "source", "confidence", "from", "hand_over")},
        failed={"hand_over": True},
    ),
)
_COUNT = len(CALLS)
OUTPUTS = (
    TensorSpec("language", "BYTES", (1,)),
    *(
        tensor
        for name in ("topic", "sentiment", "entity")
        for tensor in (
            TensorSpec(f"{name}_label", "BYTES", (-1,)),
            TensorSpec(f"{name}_score", "FP32", (-1,)),
            TensorSpec(f"{name}_count", "INT32", (1,)),
        )
    ),
    TensorSpec("entity", "BYTES", (-1,)),
    TensorSpec("start", "INT32", (-1,)),
    TensorSpec("end", "INT32", (-1,)),
    TensorSpec("redacted", "BYTES", (1,)),
    TensorSpec("reply", "BYTES", (1,)),
    TensorSpec("source", "BYTES", (1,)),
    TensorSpec("confidence", "FP32", (1,)),
    TensorSpec("from", "BYTES", (1,)),
    TensorSpec("hand_over", "BOOL", (1,)),
    TensorSpec("step_name", "BYTES", (_COUNT,)),
    TensorSpec("step_ms", "FP32", (_COUNT,)),
    TensorSpec("step_error", "BYTES", (_COUNT,)),
)


def declare(golden: Golden, card: Mapping[str, Any]) -> Pipeline:
    """The pipeline; its one member asks the others."""
    asks = ModelSpec(
        name=member_name(NAME, Role.POST),
        backend="python",
        step="ask_pipelines",
        max_batch_size=MAX_BATCH_SIZE,
        inputs=(TEXT,),
        outputs=OUTPUTS,
        instances=Instances(count=INSTANCES),
        batching=Batching(),
        parameters={"calls": json.dumps([asdict(call) for call in CALLS])},
        versions=(1,),
        internal=True,
    )
    public = ModelSpec(
        name=NAME,
        backend="ensemble",
        max_batch_size=MAX_BATCH_SIZE,
        inputs=(TEXT,),
        outputs=OUTPUTS,
        steps=(
            StepSpec(
                asks.name, 1, {"text": "text"}, {output.name: output.name for output in OUTPUTS}
            ),
        ),
        endpoint_schema=EndpointSchema(
            purpose="A customer's message: its topic, sentiment, entities, and an answer to it.",
            request=text_request(
                "A customer's message, in English or Chinese.", language=LANGUAGE, redact=REDACT
            ),
            response=_RESPONSE,
            example=golden.request,
            card=card,
        ),
        golden=golden,
    )
    return Pipeline((asks,), public)


def _field(kind: str, tensor: str, description: str = "") -> dict[str, object]:
    documentation = {"description": description} if description else {}
    return {"type": kind, **documentation, "x-tensor": tensor}


def _records(count: str | None, description: str, **fields: dict[str, object]) -> dict[str, object]:
    counted = {"x-count": count} if count else {}
    return {
        "type": "array",
        "description": description,
        **counted,
        "items": {"type": "object", "required": list(fields), "properties": fields},
    }


def _label_records(name: str, description: str) -> dict[str, object]:
    return _records(
        f"{name}_count",
        description,
        label=_field("string", f"{name}_label"),
        score=_field("number", f"{name}_score"),
    )


_FIELDS: dict[str, dict[str, object]] = {
    "language": _field("string", "language", "ISO 639-1; empty if neither classifier answered."),
    "topic": _label_records("topic", "What it is about, the likeliest first."),
    "sentiment": _label_records("sentiment", "The likeliest first."),
    "entities": _records(
        "entity_count",
        "In the order of the text; offsets in Unicode code points.",
        text=_field("string", "entity"),
        start=_field("integer", "start"),
        end=_field("integer", "end"),
        label=_field("string", "entity_label"),
        score=_field("number", "entity_score"),
    ),
    "redacted": {
        **_field(
            "string",
            "redacted",
            "The message with names and numbers masked; only if the request says redact, and the "
            "entities were found.",
        ),
        "x-null": "",
    },
    "reply": _field("string", "reply", "The knowledge base's answer, or that none is known."),
    "source": _field("string", "source", "Where the answer stands."),
    "confidence": _field("number", "confidence"),
    "from": _field("string", "from", "knowledge_base or none."),
    "hand_over": _field(
        "boolean", "hand_over", "Whether a person should answer: also where the reply failed."
    ),
    "steps": _records(
        None,
        "What was asked, how long its answer took, and why there is none.",
        name=_field("string", "step_name"),
        ms=_field("number", "step_ms"),
        error=_field("string", "step_error", "Empty if it answered."),
    ),
}
_RESPONSE = {
    "type": "object",
    "required": [name for name, schema in _FIELDS.items() if "x-null" not in schema],
    "properties": _FIELDS,
}
