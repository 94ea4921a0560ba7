"""The load: real requests of the pipeline, made once, and the answers that they get."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tritonclient.grpc import service_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.golden import GoldenError, agree
from serving.control import TritonControl
from serving.errors import ServingError
from serving.golden import bound, infer_request, request_fields, sample_of, values_of

SEED = 20240229
TIMEOUT_S = 60.0
COMPARED = 64
TOKEN_COUNT = "token_count"  # noqa: S105 - a tensor
Answer = Mapping[str, list[Any]]


@dataclass(frozen=True)
class Questions:
    """Requests to one model, by their order in ``bodies``. ``tolerance`` is the golden sample's."""

    requests: Sequence[service_pb2.ModelInferRequest]
    tolerance: float

    def to(self, model: str) -> list[bytes]:
        """The requests, addressed to ``model`` and serialised."""
        return [_addressed(each, model).SerializeToString() for each in self.requests]

    def answers(self, control: TritonControl, model: str) -> list[Answer]:
        """What ``model`` answers to the first of them; ServingError when it refuses one."""
        return [
            _read(control.infer(_addressed(each, model), TIMEOUT_S))
            for each in self.requests[:COMPARED]
        ]


def questions(config: ModelConfig, bodies: Sequence[Mapping[str, Any]]) -> Questions:
    """The golden sample and each body (an endpoint schema request), shuffled; ServingError for a
    pipeline without a golden sample or a body with an unknown field."""
    try:
        golden = sample_of(config)
    except GoldenError as error:
        raise ServingError(f"{config.name}: the golden sample {error}") from None
    if golden is None:
        raise ServingError(f"{config.name} has no golden sample, so nothing can be asked")
    fields = request_fields(config)
    requests = [infer_request(config.name, config, golden.tensors, golden.parameters)]
    for number, body in enumerate(bodies, 1):
        unknown = sorted(set(body) - set(fields))
        if unknown:
            raise ServingError(
                f"sample {number} has the field {unknown[0]!r}, and {config.name} takes "
                f"{', '.join(fields)}"
            )
        requests.append(infer_request(config.name, config, *bound(fields, body)))
    random.Random(SEED).shuffle(requests)  # noqa: S311 - an order, not a secret
    return Questions(requests, golden.golden.tolerance)


def accepted(control: TritonControl, model: str, asked: Questions) -> tuple[Questions, str]:
    """Those that the model answers, and the first refusal ('' when there was none)."""
    kept, refusal = [], ""
    for request in asked.requests:
        try:
            control.infer(_addressed(request, model), TIMEOUT_S)
        except ServingError as error:
            refusal = refusal or str(error)
        else:
            kept.append(request)
    if not kept:
        raise ServingError(f"{model} answers none of the samples: {refusal}")
    return replace(asked, requests=kept), refusal


def lengths(control: TritonControl, step: str, asked: Questions) -> list[int]:
    """The length in tokens of each text, as the tokeniser step counts them."""
    found = []
    for request in asked.requests:
        answer = _read(control.infer(_addressed(request, step), TIMEOUT_S))
        found.append(int(max(answer[TOKEN_COUNT])))
    return found


def difference(mine: Sequence[Answer], theirs: Sequence[Answer], tolerance: float) -> str:
    """'' when the answers agree within ``tolerance``, else what does not."""
    for number, (one, other) in enumerate(zip(mine, theirs, strict=True), 1):
        for tensor, values in other.items():
            if not agree(one.get(tensor, []), values, tolerance):
                return f"answers differ from the default's in {tensor} (sample {number})"
    return ""


def _addressed(request: service_pb2.ModelInferRequest, model: str) -> service_pb2.ModelInferRequest:
    own = service_pb2.ModelInferRequest()
    own.CopyFrom(request)
    own.model_name = model
    return own


def _read(answer: Any) -> Answer:
    raw = answer.raw_output_contents
    return {
        o.name: values_of(o.datatype, data) for o, data in zip(answer.outputs, raw, strict=True)
    }
