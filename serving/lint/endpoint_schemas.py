"""Endpoint schemas and golden samples: what the gateway exposes of a model, and what it is probed
with."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden, GoldenError
from modelspec.parameters import ENDPOINT_PARAMETER, GOLDEN_PARAMETER, INTERNAL_PARAMETER
from serving.lint.finding import Finding, error, info, warning
from serving.lint.reading import Model


def check(model: Model) -> Iterator[Finding]:
    texts = model.parameters
    if ENDPOINT_PARAMETER not in texts:
        if GOLDEN_PARAMETER in texts:
            yield error(
                "golden-without-endpoint",
                model.place,
                f"has {GOLDEN_PARAMETER} but no {ENDPOINT_PARAMETER}: the sample cannot be used",
                "add the endpoint schema, or remove the sample",
            )
        return
    endpoint_schema = _json(texts[ENDPOINT_PARAMETER])
    if endpoint_schema is None or not all(
        isinstance(endpoint_schema.get(part), dict) for part in ("request", "response")
    ):
        yield error(
            "endpoint-broken",
            model.place,
            f"{ENDPOINT_PARAMETER} is not a JSON object with request and response",
            "publish the pipeline again from its declaration",
        )
        return
    yield from _bindings(model, endpoint_schema)
    yield from _golden(model, endpoint_schema)
    if texts.get(INTERNAL_PARAMETER) == "true":
        yield info(
            "endpoint-hidden",
            model.place,
            "is internal, so its endpoint schema is never shown",
            f"remove {INTERNAL_PARAMETER} or the endpoint schema",
        )


def _bindings(model: Model, endpoint_schema: Mapping[str, Any]) -> Iterator[Finding]:
    config = model.config
    inputs = {tensor.name for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    request_tensors = _bound(endpoint_schema["request"])
    response_tensors = _bound(endpoint_schema["response"])
    for bound, declared, side in (
        (request_tensors, inputs, "input"),
        (response_tensors, outputs, "output"),
    ):
        for name in sorted(bound - declared):
            yield error(
                "endpoint-unbound",
                f"{model.place}:{name}",
                f"the endpoint schema binds a field to the {side} {name!r}, which the model does "
                "not have",
                f"bind it to one of: {', '.join(sorted(declared)) or '(there are none)'}",
            )
    for tensor in config.input:
        if tensor.name not in request_tensors and not tensor.optional:
            yield error(
                "input-unreachable",
                f"{model.place}:{tensor.name}",
                "is an input that no field of the endpoint schema fills: every request would fail",
                "bind a field to it, or make it optional",
            )


def _golden(model: Model, endpoint_schema: Mapping[str, Any]) -> Iterator[Finding]:
    text = model.parameters.get(GOLDEN_PARAMETER)
    if text is None:
        yield warning(
            "golden-missing",
            model.place,
            "has no golden sample: nothing can check that it is alive and right",
            f"add {GOLDEN_PARAMETER}: a request, the output's first elements, a tolerance",
        )
        return
    try:
        golden = Golden.parse(text)
    except GoldenError as fault:
        yield error(
            "golden-broken",
            model.place,
            f"{GOLDEN_PARAMETER}: the golden sample {fault}",
            "publish the pipeline again from its declaration",
        )
        return
    config = model.config
    outputs = {tensor.name for tensor in config.output}
    fields = set(endpoint_schema["request"].get("properties", {}))
    unknown = (set(golden.expect) - outputs) | (set(golden.request) - fields)
    for name in sorted(unknown):
        yield error(
            "golden-unbound",
            f"{model.place}:{name}",
            "the golden sample names it, but the model has no such field or output",
            "correct the sample",
        )


def _bound(schema: Mapping[str, Any]) -> set[str]:
    """The tensors that the schema's fields are bound to."""
    return EndpointSchema("", schema, {}, {}).tensors()


def _json(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
