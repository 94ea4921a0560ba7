"""The workload: real requests to the pipeline, built once, and the outputs that they give."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tritonclient.grpc import service_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.declaration import Declaration
from modelspec.golden import agree
from modelspec.probe import addressed_to, infer_request, outputs_of
from serving.errors import ServingError
from serving.triton.control import TritonControl

SEED = 20240229
TIMEOUT_S = 60.0
COMPARED = 64
TOKEN_COUNT = "token_count"  # noqa: S105 - a tensor
Outputs = Mapping[str, list[Any]]  # of one request, by tensor name


@dataclass(frozen=True)
class Workload:
    """Requests to one model. ``tolerance`` is the golden sample's."""

    requests: Sequence[service_pb2.ModelInferRequest]
    tolerance: float

    def requests_to(self, model: str) -> list[bytes]:
        """The requests, addressed to ``model`` and serialized."""
        return [addressed_to(request, model).SerializeToString() for request in self.requests]

    def outputs(self, control: TritonControl, model: str) -> list[Outputs]:
        """The outputs of ``model`` for the first ``COMPARED`` requests; ServingError if it refuses
        one."""
        return [
            outputs_of(control.infer(addressed_to(request, model), TIMEOUT_S))
            for request in self.requests[:COMPARED]
        ]


def from_samples(config: ModelConfig, bodies: Sequence[Mapping[str, object]]) -> Workload:
    """The golden sample and each body (a request in the endpoint schema's form), shuffled;
    ServingError for a pipeline without a golden sample or a body with an unknown field."""
    declaration = Declaration.of(config)
    if declaration.error:
        raise ServingError(str(declaration.error))
    endpoint, probe = declaration.endpoint, declaration.probe
    if endpoint is None or probe is None:
        raise ServingError(f"{config.name} has no golden sample, so there is no workload")
    requests = [probe.request]
    for number, body in enumerate(bodies, 1):
        unknown = sorted(set(body) - set(endpoint.fields))
        if unknown:
            raise ServingError(
                f"sample {number} has the field {unknown[0]!r}, and {config.name} takes "
                f"{', '.join(endpoint.fields)}"
            )
        try:
            requests.append(infer_request(config, endpoint, body))
        except (TypeError, ValueError) as error:
            raise ServingError(f"sample {number} does not fit {config.name}: {error}") from None
    random.Random(SEED).shuffle(requests)  # noqa: S311 - an order, not a secret
    return Workload(requests, probe.golden.tolerance)


def accepted(control: TritonControl, model: str, workload: Workload) -> tuple[Workload, str]:
    """The requests that the model answers, and the first refusal ('' if there was none)."""
    requests, refusal = [], ""
    for request in workload.requests:
        try:
            control.infer(addressed_to(request, model), TIMEOUT_S)
        except ServingError as error:
            refusal = refusal or str(error)
        else:
            requests.append(request)
    if not requests:
        raise ServingError(f"{model} answers none of the samples: {refusal}")
    return replace(workload, requests=requests), refusal


def lengths(control: TritonControl, step: str, workload: Workload) -> list[int]:
    """The length in tokens of each text, as the tokenizer step counts them."""
    counts = []
    for request in workload.requests:
        outputs = outputs_of(control.infer(addressed_to(request, step), TIMEOUT_S))
        counts.append(int(max(outputs[TOKEN_COUNT])))
    return counts


def difference(actual: Sequence[Outputs], expected: Sequence[Outputs], tolerance: float) -> str:
    """'' if the outputs agree within ``tolerance``, else the first difference."""
    for number, (outputs, references) in enumerate(zip(actual, expected, strict=True), 1):
        for tensor, values in references.items():
            if not agree(outputs.get(tensor, []), values, tolerance):
                return f"outputs differ from the default's in {tensor} (sample {number})"
    return ""
