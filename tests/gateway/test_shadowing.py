"""How two responses are compared, in whichever form they came."""

import re

import numpy as np
import orjson
import pytest
from tritonclient.grpc import service_pb2

from gateway.render import Reply
from gateway.shadowing import _read_reply, difference
from modelspec.elements import encode

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
