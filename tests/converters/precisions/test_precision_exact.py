"""8-bit arithmetic is exact on every CPU, even where signed weights would overflow in pairs."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.precisions.write import write_precision

WIDTH = 64
SIGNS = np.where(np.arange(WIDTH) % 3 == 0, -1, 1).astype(np.float32)
# Every weight is 127 or -127 steps; a column has one sign, so that neighbours do not cancel.
PAIRS = np.tile(SIGNS, (WIDTH, 1))
DEAD = np.where(np.arange(WIDTH) == 5, 0, PAIRS).astype(np.float32)


def save(folder, operator, constants, shape, **attributes):
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("x", shape), ("answer", None))
    ]
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(value), name)
        for name, value in constants.items()
    ]
    node = helper.make_node(operator, ["x", *constants], ["answer"], **attributes)
    graph = helper.make_graph([node], "extremes", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "source.onnx")


def both(folder, precision, feed):
    """The answers of the graph in FP32 and in the precision; the feed is also the calibration
    sample."""
    source, target = folder / "source.onnx", folder / "target.onnx"
    write_precision(precision, source, target, lambda: [feed])
    return [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)[
            0
        ]
        for path in (source, target)
    ]


def extremes(*shape):
    """255 steps almost everywhere and 0 elsewhere: answers are whole numbers of steps."""
    return (np.random.default_rng(3).random(shape) < 0.9).astype(np.float32)


@pytest.mark.parametrize("weights", [PAIRS, DEAD], ids=["all at the ends", "a column of zeros"])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
@pytest.mark.parametrize("precision", ["int8-static", "int8-per-row", "int8-dynamic"])
def test_products_of_the_largest_numbers_are_exact(tmp_path, precision, operator, weights):
    save(tmp_path, operator, {"w": weights}, ["n", WIDTH])
    expected, actual = both(tmp_path, precision, {"x": extremes(40, WIDTH)})
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, WIDTH])
def test_convolutions_of_the_largest_numbers_are_exact(tmp_path, groups):
    """A channel of zeros has the same zero point as all others: QLinearConv requires it."""
    shape = (WIDTH, WIDTH // groups, 3, 3)
    weights = np.broadcast_to(DEAD[0][:, None, None, None], shape)
    save(tmp_path, "Conv", {"w": weights}, ["n", WIDTH, 8, 8], group=groups)
    expected, actual = both(tmp_path, "int8-static", {"x": extremes(2, WIDTH, 8, 8)})
    step = (expected.max() - expected.min()) / 255  # the output is rounded to 8 bits as well
    assert np.abs(actual - expected).max() <= 0.51 * step


def test_a_recurrence_of_large_numbers_is_close(tmp_path):
    """Gate weights of 0.05: the sums are in the steep part of the sigmoid, none is saturated."""
    gates = np.tile(np.resize(SIGNS, 4 * WIDTH)[:, None], (1, WIDTH)) * np.float32(0.05)
    save(tmp_path, "LSTM", {"w": gates[None], "r": gates[None]}, [3, 2, WIDTH], hidden_size=WIDTH)
    expected, actual = both(tmp_path, "int8-dynamic", {"x": extremes(3, 2, WIDTH)})
    assert np.abs(actual - expected).max() < 0.02


@pytest.mark.parametrize("precision", ["int8-static", "int8-per-row", "int8-dynamic"])
def test_no_weight_is_signed(tmp_path, precision):
    save(tmp_path, "MatMul", {"w": PAIRS}, ["n", WIDTH])
    both(tmp_path, precision, {"x": extremes(4, WIDTH)})
    graph = onnx.load(tmp_path / "target.onnx").graph
    assert TensorProto.INT8 not in {tensor.data_type for tensor in graph.initializer}
