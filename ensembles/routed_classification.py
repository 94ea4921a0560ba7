"""Classifiers of several languages behind one name: a text goes to the one that reads its language.

text -> NAME_pre (which task?) -> the steps of each classifier -> NAME_post (the chosen answer)

All classifiers run for each request, those that were not chosen on a full stop (ARCHITECTURE.md
says why). Their steps are those of their own pipelines, in the versions that were active when this
one was composed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ensembles.text_fields import SHORT_TEXT, TEXT, TOKEN_COUNT, text_request
from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.model import Batching, ModelSpec, Pipeline, StepSpec, TensorSpec
from modelspec.names import Role, member_name

_TASK = TensorSpec("task", "BYTES", (1,))
_LANGUAGE = TensorSpec("language", "BYTES", (1,))
_ANSWER = (
    TensorSpec("label", "BYTES", (1,)),
    TensorSpec("score", "FP32", (1,)),
    TensorSpec("labels", "BYTES", (-1,)),
    TensorSpec("scores", "FP32", (-1,)),
    TensorSpec("label_count", "INT32", (1,)),
    TOKEN_COUNT,
)


@dataclass(frozen=True)
class Classifier:
    """A text-classification pipeline: its name is the task's. ``steps`` are wired as in its own
    config."""

    name: str
    languages: Sequence[str]
    labels: int
    steps: Sequence[StepSpec]
    max_batch_size: int

    def own(self, tensor: str) -> str:
        """The name in the joint pipeline of a tensor of this one."""
        return f"{self.name}_{tensor}"

    def renamed_steps(self) -> tuple[StepSpec, ...]:
        return tuple(
            replace(step, inputs=self._renamed(step.inputs), outputs=self._renamed(step.outputs))
            for step in self.steps
        )

    def outputs(self) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec(self.own("label"), "BYTES", (self.labels,)),
            TensorSpec(self.own("score"), "FP32", (self.labels,)),
            TensorSpec(self.own("token_count"), "INT32", (1,)),
        )

    def _renamed(self, tensors: Mapping[str, str]) -> Mapping[str, str]:
        return {name: self.own(tensor) for name, tensor in tensors.items()}


def declare(
    name: str, classifiers: Sequence[Classifier], golden: Golden, card: Mapping[str, Any]
) -> Pipeline:
    """The pipeline, whose members are its own two steps only. Of the classifiers that read a
    language, the first does unless the request names another."""
    batch = min(classifier.max_batch_size for classifier in classifiers)
    outputs = tuple(tensor for classifier in classifiers for tensor in classifier.outputs())
    texts = tuple(TensorSpec(classifier.own("text"), "BYTES", (1,)) for classifier in classifiers)
    tasks = [
        {"task": classifier.name, "languages": list(classifier.languages)}
        for classifier in classifiers
    ]
    route = _step(name, Role.PRE, "route_text", (TEXT,), (_TASK, _LANGUAGE, *texts), batch)
    route = replace(route, parameters={"tasks": json.dumps(tasks)})
    chosen = _step(name, Role.POST, "choose_labels", (_TASK, *outputs), _ANSWER, batch)
    chosen = replace(
        chosen, parameters={"tasks": ",".join(classifier.name for classifier in classifiers)}
    )
    public = ModelSpec(
        name=name,
        backend="ensemble",
        max_batch_size=batch,
        inputs=(TEXT,),
        outputs=(_TASK, _LANGUAGE, *_ANSWER),
        steps=(
            _wired(route),
            *(step for classifier in classifiers for step in classifier.renamed_steps()),
            _wired(chosen),
        ),
        parameters=SHORT_TEXT,
        endpoint_schema=_endpoint_schema(classifiers, golden, card),
        golden=golden,
        deterministic=True,
    )
    return Pipeline((route, chosen), public)


def _step(
    pipeline: str,
    role: Role,
    step: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    max_batch_size: int,
) -> ModelSpec:
    return ModelSpec(
        name=member_name(pipeline, role),
        backend="python",
        step=step,
        max_batch_size=max_batch_size,
        inputs=inputs,
        outputs=outputs,
        batching=Batching(),
        versions=(1,),
        internal=True,
    )


def _wired(member: ModelSpec) -> StepSpec:
    """A step whose tensors have the same names in the pipeline."""
    inputs, outputs = (
        {tensor.name: tensor.name for tensor in tensors}
        for tensors in (member.inputs, member.outputs)
    )
    return StepSpec(member.name, 1, inputs, outputs)


def _endpoint_schema(
    classifiers: Sequence[Classifier], golden: Golden, card: Mapping[str, Any]
) -> EndpointSchema:
    languages = dict.fromkeys(
        language for classifier in classifiers for language in classifier.languages
    )
    request = text_request(
        "The text to classify.",
        language={
            "type": "string",
            "enum": [*languages],
            "description": "The text's language, if it should not be detected.",
            "x-parameter": "language",
        },
        task={
            "type": "string",
            "enum": [classifier.name for classifier in classifiers],
            "description": "The classifier, if it should not be the language's first one.",
            "x-parameter": "task",
        },
    )
    return EndpointSchema(
        purpose="Classify a text by the model that reads its language.",
        request=request,
        response=_RESPONSE,
        example=golden.request,
        card=card,
    )


_RESPONSE = {
    "type": "object",
    "required": ["task", "label", "score", "labels", "language", "token_count"],
    "properties": {
        "task": {"type": "string", "x-tensor": "task"},
        "label": {"type": "string", "description": "The likeliest.", "x-tensor": "label"},
        "score": {"type": "number", "description": "Its score.", "x-tensor": "score"},
        "labels": {
            "type": "array",
            "description": "All of the task, the likeliest first.",
            "x-count": "label_count",
            "items": {
                "type": "object",
                "required": ["label", "score"],
                "properties": {
                    "label": {"type": "string", "x-tensor": "labels"},
                    "score": {"type": "number", "x-tensor": "scores"},
                },
            },
        },
        "language": {"type": "string", "x-tensor": "language"},
        "token_count": {"type": "integer", "x-tensor": "token_count"},
    },
}
