"""How two responses are compared, in whichever form they came, and what counts as a comparison."""

import asyncio
import re

import numpy as np
import orjson
import pytest
from tritonclient.grpc import service_pb2

from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    NoCapacity,
    ReplicaLost,
    UpstreamError,
)
from gateway.http.request_context import ShadowedRequest
from gateway.metrics import Metrics
from gateway.models.catalogue import Catalogue
from gateway.models.rows import Batch
from gateway.render import Reply
from gateway.row_inference import infer_batch
from gateway.shadowing import TIMEOUT_S, Shadows, _read_reply, difference
from gateway.upstream.replicas import ReplicaPool
from modelspec.elements import encode
from tests.gateway.request_contexts import context_of
from tests.gateway.upstream.test_replicas import Connection

NAN, INFINITY = float("nan"), float("inf")


def _response(**outputs) -> service_pb2.ModelInferResponse:
    """Each output as (dtype, values), or (dtype, values, shape)."""
    response = service_pb2.ModelInferResponse()
    for name, (dtype, values, *shape) in outputs.items():
        response.outputs.add(name=name, datatype=dtype, shape=shape[0] if shape else [len(values)])
        response.raw_output_contents.append(encode(dtype, values))
    return response


@pytest.mark.parametrize(
    ("primary", "shadow", "tolerance"),
    [
        ({"y": ("FP32", [1.0, 2.0])}, {"y": ("FP32", [1.009, 1.991])}, 0.01),
        ({"y": ("FP32", [NAN, INFINITY])}, {"y": ("FP32", [NAN, INFINITY])}, 0.01),
        ({"y": ("FP64", [1e6])}, {"y": ("FP64", [1e6 + 1])}, None),
        ({"y": ("FP16", [0.0])}, {"y": ("FP16", [-0.0])}, 0.0),
        ({"y": ("BYTES", ["a"])}, {"y": ("BYTES", ["a"])}, 0.01),
        ({"y": ("FP32", [1.0])}, {"more": ("INT32", [1]), "y": ("FP32", [1.0])}, 0.01),
        ({"a": ("INT8", [1]), "b": ("INT8", [2])}, {"b": ("INT8", [2]), "a": ("INT8", [1])}, 0),
    ],
)
def test_equal_within_the_tolerance(primary, shadow, tolerance):
    assert difference(_response(**primary), _response(**shadow), tolerance) == ""


@pytest.mark.parametrize(
    ("primary", "shadow", "tolerance", "message"),
    [
        ({"y": ("FP32", [1.0])}, {"y": ("FP32", [1.02])}, 0.01, "elements of output 'y'"),
        ({"y": ("FP32", [1.0])}, {"y": ("FP32", [1.001])}, None, "elements"),
        ({"y": ("FP32", [1.0])}, {"y": ("FP32", [NAN])}, 10.0, "elements"),
        ({"y": ("FP32", [INFINITY])}, {"y": ("FP32", [-INFINITY])}, 10.0, "elements"),
        ({"y": ("FP32", [1.0])}, {"z": ("FP32", [1.0])}, 0.01, "no output 'y'"),
        ({"y": ("FP32", [1.0])}, {"y": ("FP64", [1.0])}, 0.01, "FP64 instead of FP32"),
        (
            {"y": ("FP32", [1.0, 2.0])},
            {"y": ("FP32", [1.0, 2.0], [2, 1])},
            0.01,
            r"\[2, 1\] instead of \[2\]",
        ),
        ({"y": ("INT32", [1])}, {"y": ("INT32", [2])}, 5.0, "elements"),
        ({"y": ("BYTES", ["a"])}, {"y": ("BYTES", ["b"])}, 5.0, "elements"),
    ],
)
def test_what_differs_is_named(primary, shadow, tolerance, message):
    assert re.search(message, difference(_response(**primary), _response(**shadow), tolerance))


@pytest.mark.parametrize("is_binary", [False, True])
def test_tritons_response_over_http_is_read(is_binary):
    vector, labels = np.float32([0.1, -2.5]), [3, 4]
    outputs = [
        {"name": "y", "datatype": "FP32", "shape": [1, 2]},
        {"name": "label", "datatype": "INT64", "shape": [2], "data": labels},
    ]
    tail = vector.tobytes() if is_binary else b""
    if is_binary:
        outputs[0]["parameters"] = {"binary_data_size": 8}
    else:
        outputs[0]["data"] = vector.tolist()
    head = orjson.dumps({"model_name": "m", "outputs": outputs})
    headers = [(b"inference-header-content-length", b"%d" % len(head))] if is_binary else []
    response = _read_reply(Reply(200, head + tail, headers=headers))
    expected = _response(y=("FP32", vector.tolist(), [1, 2]), label=("INT64", labels))
    assert response == expected


class _Upstream(Connection):
    """Answers each inference after ``takes_s``, or with the ``error``."""

    takes_s = 0.0
    error: GatewayError | None = None

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.timeouts_s: list[float] = []

    async def infer(self, request, timeout_s, *_):
        self.timeouts_s.append(timeout_s)
        await asyncio.sleep(self.takes_s)
        if self.error:
            raise self.error
        return _response(y=("FP32", [1.0]))


class _Shadowing:
    """A pipeline and its shadow on one replica."""

    def __init__(self) -> None:
        self.pool, self._metrics = ReplicaPool(_Upstream, 8), Metrics()
        self.pool.apply(["a:1"])
        self.upstream = self.pool.replicas[0].upstream
        self.shadows = Shadows(self.pool, self._metrics, {})
        self.context = context_of({"type": "http", "path": "/", "headers": []}, None)
        self.context.shadow = ShadowedRequest("m", "m.v2")

    async def compare(self) -> None:
        self.shadows.send(self.context, self.context.shadow, Catalogue())
        await asyncio.gather(*self.shadows._tasks)

    def samples(self, name: str, label: str) -> dict[str, float]:
        """The samples that are not 0, by this label."""
        return {
            sample.labels[label]: sample.value
            for metric in self._metrics.registry.collect()
            for sample in metric.samples
            if sample.name == name and sample.value
        }


def _lost_while_it_worked() -> ReplicaLost:
    """What a shadow that ends its server looks like."""
    error = ReplicaLost("it is gone")
    error.was_sent = True
    return error


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (None, "agrees"),
        (NoCapacity("it is full"), "dropped"),
        (ReplicaLost("it is gone"), "dropped"),
        (_lost_while_it_worked(), "failed"),
        (UpstreamError("it failed"), "failed"),
        (InvalidRequest("it takes no such tensor"), "failed"),
        (DeadlineExceeded("late"), "failed"),
    ],
)
async def test_a_server_that_is_full_or_gone_is_no_verdict_on_the_shadow(error, result, caplog):
    shadowing = _Shadowing()
    message = service_pb2.ModelInferRequest()
    shadowing.context.shadow.answered(message, _response(y=("FP32", [1.0])), 0.01)
    shadowing.upstream.error = error
    await shadowing.compare()
    assert shadowing.samples("tidegate_shadow_requests_total", "result") == {result: 1}
    assert (error is None) == (caplog.text == "")
    assert error is None or error.message in caplog.text


@pytest.mark.parametrize(("primary_s", "timeout_s"), [(0.01, TIMEOUT_S), (30.0, 60.0)])
async def test_a_shadow_has_twice_the_time_that_the_pipeline_took(primary_s, timeout_s):
    shadowing = _Shadowing()
    message = service_pb2.ModelInferRequest()
    shadowing.context.shadow.answered(message, _response(y=("FP32", [1.0])), primary_s)
    await shadowing.compare()
    assert shadowing.upstream.timeouts_s == [timeout_s]


async def test_of_many_batches_the_time_of_the_one_that_is_compared_counts():
    shadowing = _Shadowing()
    shadowing.upstream.takes_s = 0.05
    for row_index in range(2):
        batch = Batch((row_index,), service_pb2.ModelInferRequest())
        await infer_batch(shadowing.context, shadowing.upstream, batch)
    shadowing.context.upstream_s = 1000.0  # of all
    await shadowing.compare()
    seconds = shadowing.samples("tidegate_shadow_seconds_sum", "arm")
    assert 0.04 < seconds["primary"] < 500
    assert 0.04 < seconds["shadow"] < 500
