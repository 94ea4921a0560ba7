"""Elements as raw bytes and back; the table of types agrees with Triton's and ONNX's own."""

import math

import numpy as np
import onnx
import pytest
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from modelspec.dtypes import ELEMENT_TYPES, NUMERIC_TYPES, ONNX_NAMES, protocol_name
from modelspec.elements import decode, encode, filled
from serving.lint.graph_file import ort_graph


@pytest.mark.parametrize("dtype", NUMERIC_TYPES)
def test_numbers_are_encoded_as_numpy_has_them(dtype):
    values = [True, False] if dtype == "BOOL" else [0, 1, 127]
    raw = encode(dtype, values)
    assert raw == np.array(values, NUMERIC_TYPES[dtype]).tobytes()
    assert decode(dtype, raw).tolist() == values


def test_texts_are_encoded_as_tritons_client_does():
    texts = ["a", "", "地", b"\xff"]
    raw = encode("BYTES", texts)
    encoded = [text if isinstance(text, bytes) else text.encode() for text in texts]
    assert raw == serialize_byte_tensor(np.array(encoded, dtype=object)).item()
    assert decode("BYTES", raw).tolist() == deserialize_bytes_tensor(raw).tolist() == encoded


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *[("INT8", value) for value in (128, -129, 1.5, True, "1", None, math.nan, math.inf)],
        *[("UINT64", value) for value in (-1, 2**64, 10**400)],
        *[("FP32", value) for value in (1e39, "1", True, None, 10**400, [1.0])],
        *[("BOOL", value) for value in (1, 0.0, "true")],
        *[("BYTES", value) for value in (1, None, 1.5)],
        ("BF16", 1.0),
        ("NONE", 1.0),
    ],
)
def test_a_value_that_the_type_cannot_hold_is_refused(dtype, value):
    with pytest.raises((TypeError, ValueError)):
        encode(dtype, [value])


def test_not_a_number_is_a_number():
    assert math.isnan(decode("FP16", encode("FP16", [math.nan]))[0])
    assert decode("FP64", encode("FP64", [math.inf])).tolist() == [math.inf]
    assert decode("INT64", encode("INT64", [3.0, 2**62 + 1])).tolist() == [3, 2**62 + 1]


@pytest.mark.parametrize(
    ("dtype", "raw"),
    [("BYTES", b"\x01"), ("BYTES", b"\x02\0\0\0a"), ("FP32", b"\0\0"), ("BF16", b"\0\0")],
)
def test_bytes_that_cannot_be_read_are_refused(dtype, raw):
    with pytest.raises(ValueError, match=r"cut off|multiple|no type"):
        decode(dtype, raw)


@pytest.mark.parametrize(
    ("dims", "count", "shape"),
    [((-1,), 3, (3,)), ((2, -1), 6, (2, 3)), ((2, 3), 6, (2, 3)), ((), 1, ()), ((-1,), 0, (0,))],
)
def test_an_open_axis_is_filled(dims, count, shape):
    assert filled(dims, count) == shape


@pytest.mark.parametrize(("dims", "count"), [((2, -1), 5), ((-1, -1), 4), ((2,), 3), ((0, -1), 1)])
def test_values_that_do_not_fill_the_shape_are_refused(dims, count):
    with pytest.raises(ValueError, match="do not fill"):
        filled(dims, count)


def test_the_table_has_tritons_types_and_onnx_numbers():
    triton = dict(model_config_pb2.DataType.items())
    del triton["TYPE_INVALID"]
    assert {entry.config_name: entry.config_number for entry in ELEMENT_TYPES.values()} == triton
    assert protocol_name(triton["TYPE_STRING"]) == "BYTES"
    assert protocol_name(0) == "INVALID"
    for entry in ELEMENT_TYPES.values():
        if entry.numpy is not None and entry.size_bytes:
            onnx_dtype = onnx.helper.tensor_dtype_to_np_dtype(entry.onnx_number)
            assert onnx_dtype == entry.numpy, entry


def test_the_backend_inside_triton_has_the_same_table():
    """It imports nothing of ours, so it has its own."""
    own = {name: ELEMENT_TYPES[dtype].config_name for name, dtype in ONNX_NAMES.items()}
    assert own == ort_graph.CONFIG_TYPES
