"""The 8-bit arithmetic is exact on every CPU: also where signed weights would overflow in pairs."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.precision import write_precision

WIDTH = 64
SIGNS = np.where(np.arange(WIDTH) % 3 == 0, -1, 1).astype(np.float32)
# Every weight is 127 or -127 steps; each column has one sign, so that neighbours add up.
PAIRS = np.tile(SIGNS, (WIDTH, 1))
DEAD = np.where(np.arange(WIDTH) == 5, 0, PAIRS).astype(np.float32)


def save(folder, kind, constants, shape, **attributes):
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, form)
        for name, form in (("x", shape), ("answer", None))
    ]
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(value), name)
        for name, value in constants.items()
    ]
    node = helper.make_node(kind, ["x", *constants], ["answer"], **attributes)
    graph = helper.make_graph([node], "extremes", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "source.onnx")


def both(folder, precision, feed):
    """The answers of the graph and of its precision: FP32 each. Extremes are also the samples."""
    source, target = folder / "source.onnx", folder / "target.onnx"
    write_precision(precision, source, target, lambda: [feed])
    return [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)[
            0
        ]
        for path in (source, target)
    ]


def extremes(*shape):
    """255 steps nearly everywhere, and 0 in places: an answer is a whole number."""
    return (np.random.default_rng(3).random(shape) < 0.9).astype(np.float32)


@pytest.mark.parametrize("weights", [PAIRS, DEAD], ids=["all at the ends", "a column of zeros"])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
@pytest.mark.parametrize("precision", ["int8", "int8-rows", "int8-dynamic"])
def test_products_of_the_largest_numbers_are_exact(tmp_path, precision, kind, weights):
    save(tmp_path, kind, {"w": weights}, ["n", WIDTH])
    expected, answer = both(tmp_path, precision, {"x": extremes(40, WIDTH)})
    np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, WIDTH])
def test_convolutions_of_the_largest_numbers_are_exact(tmp_path, groups):
    """A channel of zeros has the same zero point as all others: QLinearConv insists on it."""
    shape = (WIDTH, WIDTH // groups, 3, 3)
    weights = np.broadcast_to(DEAD[0][:, None, None, None], shape)
    save(tmp_path, "Conv", {"w": weights}, ["n", WIDTH, 8, 8], group=groups)
    expected, answer = both(tmp_path, "int8", {"x": extremes(2, WIDTH, 8, 8)})
    step = (expected.max() - expected.min()) / 255  # the answer is rounded to 8 bits as well
    assert np.abs(answer - expected).max() <= 0.51 * step


def test_a_recurrence_of_the_largest_numbers_is_near(tmp_path):
    """Gates at 0.05 a weight: the sums are in the steep part of the sigmoid, none is saturated."""
    gates = np.tile(np.resize(SIGNS, 4 * WIDTH)[:, None], (1, WIDTH)) * np.float32(0.05)
    save(tmp_path, "LSTM", {"w": gates[None], "r": gates[None]}, [3, 2, WIDTH], hidden_size=WIDTH)
    expected, answer = both(tmp_path, "int8-dynamic", {"x": extremes(3, 2, WIDTH)})
    assert np.abs(answer - expected).max() < 0.02


@pytest.mark.parametrize("precision", ["int8", "int8-rows", "int8-dynamic"])
def test_no_weight_is_signed(tmp_path, precision):
    save(tmp_path, "MatMul", {"w": PAIRS}, ["n", WIDTH])
    both(tmp_path, precision, {"x": extremes(4, WIDTH)})
    graph = onnx.load(tmp_path / "target.onnx").graph
    assert TensorProto.INT8 not in {tensor.data_type for tensor in graph.initializer}
