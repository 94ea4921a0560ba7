"""Endpoint schemas and golden samples: what the gateway exposes of a model, and what it is probed
with."""

from collections.abc import Iterator

from modelspec.declaration import Declaration
from modelspec.endpoint_schema import EndpointSchema
from modelspec.errors import DeclarationError
from modelspec.golden import Golden
from modelspec.parameters import ENDPOINT_PARAMETER, GOLDEN_PARAMETER, INTERNAL_PARAMETER
from serving.lint.finding import Finding, error, info, warning
from serving.lint.reading import Model


def check(model: Model) -> Iterator[Finding]:
    texts = model.parameters
    if ENDPOINT_PARAMETER not in texts:
        if GOLDEN_PARAMETER in texts:
            yield error(
                "golden-without-endpoint",
                model.location,
                f"has {GOLDEN_PARAMETER} but no {ENDPOINT_PARAMETER}: the sample cannot be used",
                "add the endpoint schema, or remove the sample",
            )
        return
    try:
        endpoint = EndpointSchema.parse(texts[ENDPOINT_PARAMETER])
    except DeclarationError as fault:
        yield error("endpoint-broken", model.location, fault.problem, fault.remedy)
        return
    findings = [*_bindings(model, endpoint), *_golden(model, endpoint)]
    yield from findings
    unfit = Declaration.of(model.config).error
    if unfit and not findings:
        yield error("golden-broken", model.location, unfit.problem, unfit.remedy)
    if texts.get(INTERNAL_PARAMETER) == "true":
        yield info(
            "endpoint-hidden",
            model.location,
            "is internal, so its endpoint schema is never shown",
            f"remove {INTERNAL_PARAMETER} or the endpoint schema",
        )


def _bindings(model: Model, endpoint: EndpointSchema) -> Iterator[Finding]:
    config = model.config
    inputs = {tensor.name for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    for bound, declared, side in (
        (endpoint.input_tensors, inputs, "input"),
        (endpoint.output_tensors, outputs, "output"),
    ):
        for name in sorted(bound - declared):
            yield error(
                "endpoint-unbound",
                f"{model.location}:{name}",
                f"the endpoint schema binds a field to the {side} {name!r}, which the model does "
                "not have",
                f"bind it to one of: {', '.join(sorted(declared)) or '(there are none)'}",
            )
    for tensor in config.input:
        if tensor.name not in endpoint.input_tensors and not tensor.optional:
            yield error(
                "input-unreachable",
                f"{model.location}:{tensor.name}",
                "is an input that no field of the endpoint schema fills: every request would fail",
                "bind a field to it, or make it optional",
            )


def _golden(model: Model, endpoint: EndpointSchema) -> Iterator[Finding]:
    text = model.parameters.get(GOLDEN_PARAMETER)
    if text is None:
        yield warning(
            "golden-missing",
            model.location,
            "has no golden sample: nothing can check that it is alive and right",
            f"add {GOLDEN_PARAMETER}: a request, the output's first elements, a tolerance",
        )
        return
    try:
        golden = Golden.parse(text)
    except DeclarationError as fault:
        yield error("golden-broken", model.location, fault.problem, fault.remedy)
        return
    outputs = {tensor.name for tensor in model.config.output}
    unknown = (set(golden.expect) - outputs) | (set(golden.request) - set(endpoint.fields))
    for name in sorted(unknown):
        yield error(
            "golden-unbound",
            f"{model.location}:{name}",
            "the golden sample names it, but the model has no such field or output",
            "correct the sample",
        )
