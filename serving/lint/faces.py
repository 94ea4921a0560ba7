"""Faces and golden samples: what the gateway shows of a model, and what it is probed with."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.face import FACE_PARAMETER, GOLDEN_PARAMETER, INTERNAL_PARAMETER, Face
from modelspec.golden import GoldenError, parse_golden
from serving.golden import request_fields, sample_of
from serving.lint.finding import Finding, error, info, warning
from serving.lint.reading import Model


def check(model: Model) -> Iterator[Finding]:
    texts = model.parameters
    if FACE_PARAMETER not in texts:
        if GOLDEN_PARAMETER in texts:
            yield error(
                "golden-without-face",
                model.place,
                f"has {GOLDEN_PARAMETER} and no {FACE_PARAMETER}: nobody can read the sample",
                "add the face, or take the sample out",
            )
        return
    face = _json(texts[FACE_PARAMETER])
    if face is None or not all(
        isinstance(face.get(part), dict) for part in ("request", "response")
    ):
        yield error(
            "face-broken",
            model.place,
            f"{FACE_PARAMETER} is no JSON object with request and response",
            "publish the pipeline again from its declaration",
        )
        return
    unbound = list(_bindings(model, face))
    yield from unbound
    yield from _golden(model, is_bound=not unbound)
    if texts.get(INTERNAL_PARAMETER) == "true":
        yield info(
            "face-hidden",
            model.place,
            "is internal, so its face is never shown",
            f"take {INTERNAL_PARAMETER} or the face out",
        )


def _bindings(model: Model, face: Mapping[str, Any]) -> Iterator[Finding]:
    config = model.config
    inputs = {tensor.name for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    asked, given = _bound(face["request"]), _bound(face["response"])
    for names, there, kind in ((asked, inputs, "input"), (given, outputs, "output")):
        for name in sorted(names - there):
            yield error(
                "face-unbound",
                f"{model.place}:{name}",
                f"the face binds a field to the {kind} {name!r}, and the model has none",
                f"bind it to one of: {', '.join(sorted(there)) or 'nothing is there'}",
            )
    for tensor in config.input:
        if tensor.name not in asked and not tensor.optional:
            yield error(
                "input-unreachable",
                f"{model.place}:{tensor.name}",
                "is an input that no field of the face fills: every request would fail",
                "bind a field to it, or make it optional",
            )


def _golden(model: Model, is_bound: bool) -> Iterator[Finding]:
    text = model.parameters.get(GOLDEN_PARAMETER)
    if text is None:
        yield warning(
            "golden-missing",
            model.place,
            "has no golden sample: nothing can tell whether it is alive and right",
            f"add {GOLDEN_PARAMETER}: a request, the answer's first elements, a tolerance",
        )
        return
    config = model.config
    try:
        golden = parse_golden(text)
        fields = request_fields(config)
    except GoldenError as fault:
        yield error(
            "golden-broken",
            model.place,
            str(fault),
            "publish the pipeline again from its declaration",
        )
        return
    outputs = {tensor.name for tensor in config.output}
    strange = (set(golden.expect) - outputs) | (set(golden.request) - set(fields))
    for name in sorted(strange):
        yield error(
            "golden-unbound",
            f"{model.place}:{name}",
            "the golden sample names it, and the model has no such field or output",
            "correct the sample",
        )
    if is_bound and not strange:
        yield from _asked(model, config)


def _asked(model: Model, config: ModelConfig) -> Iterator[Finding]:
    """Whether the sample's request can be sent."""
    try:
        sample_of(config)
    except GoldenError as fault:
        yield error("golden-broken", model.place, str(fault), "correct the sample")


def _bound(schema: Mapping[str, Any]) -> set[str]:
    """The tensors that the schema's fields are bound to."""
    return Face("", schema, {}, {}).tensors()


def _json(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
