"""What is wrong with one model's golden sample is a fault of that model: the others are probed."""

import time

from tritonclient.grpc import service_pb2

from modelspec.elements import encode
from modelspec.parameters import ENDPOINT_PARAMETER, GOLDEN_PARAMETER
from modelspec.pbtxt import to_proto
from serving.health.health import FAULTS_NEEDED, Health
from tests.serving.small_pipeline import pipeline

# Model -> the parameter in its config that cannot be used.
BROKEN = {
    "not_json": (GOLDEN_PARAMETER, "not JSON"),
    "empty": (GOLDEN_PARAMETER, "{}"),
    "huge": (
        GOLDEN_PARAMETER,
        f'{{"request": {{"x": 1}}, "expect": {{"score": [1]}}, "tolerance": 1{"0" * 400}}}',
    ),
    "no_endpoint": (ENDPOINT_PARAMETER, "[" * 100_000),
}


class _Control:
    """A Triton whose models all answer rightly, if they can be asked."""

    load_timeout_s = 60.0

    def config(self, model):
        config = to_proto(pipeline(1).public)
        config.name = model
        if model in BROKEN:
            name, text = BROKEN[model]
            config.parameters[name].string_value = text
        return config

    def infer(self, request, timeout_s):
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name="score", datatype="FP32", shape=[1, 1])
        response.raw_output_contents.append(encode("FP32", [2.0]))
        return response


def test_a_sample_that_cannot_be_used_is_a_verdict_on_its_model_alone():
    health = Health(_Control())
    verdicts = {}
    for _ in range(FAULTS_NEEDED):
        health.probe(["right", *BROKEN])
        deadline, verdicts = time.monotonic() + 30, {}
        while set(health._probing._probes) and time.monotonic() < deadline:
            verdicts |= health.verdicts()
            time.sleep(0.01)
    assert verdicts.pop("right") == ""
    assert set(verdicts) == set(BROKEN)
    assert all(
        fault.startswith(("has a golden sample that ", "has an endpoint schema that "))
        for fault in verdicts.values()
    ), verdicts
