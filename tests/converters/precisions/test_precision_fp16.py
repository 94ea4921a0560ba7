"""FP16 arithmetic as on a GPU: no overflow, no underflow, no NaN."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from converters.precisions.write import write_precision
from tests.converters.precisions.test_precision import (
    FINFO_MIN,
    LENGTH,
    attention,
    graph_of,
    padded,
    run,
    sentences,
)


def run_in_fp16(graph: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    """Run the reference implementation: on a CPU, ONNX Runtime computes in FP32 where it has no
    FP16 kernel, which hides overflows that a GPU would have."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(ReferenceEvaluator(str(graph)).run(None, feed)[0])


@pytest.mark.parametrize("masked", [FINFO_MIN, -1e9, -1e5])
def test_masks_survive_fp16(tmp_path, masked):
    """With a fully masked row, whose scores of about -200 make -65504 overflow."""
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    model = attention(masked)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    opposite = -numpy_helper.to_array(tensors["w_q"])
    tensors["w_k"].CopyFrom(numpy_helper.from_array(opposite, "w_k"))
    onnx.save(model, source)
    write_precision("fp16", source, target, list)
    feed = padded(sentences(4), LENGTH)
    feed["mask"][1], feed["x"][1] = 0, 3
    actual, expected = run_in_fp16(target, feed), run(source, feed)
    assert np.isfinite(actual).all()
    assert np.abs(actual - expected).max() < 2e-3
    dtypes = {tensor.data_type for tensor in onnx.load(target).graph.initializer}
    assert TensorProto.FLOAT16 in dtypes


def test_fp16_keeps_sums_of_squares_and_small_divisors(tmp_path):
    """x / sqrt(mean(x * x) + 1e-12): in FP16, 400 squared is infinite and 1e-12 is 0."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Mul", ["h", "h"], ["square"]),
        helper.make_node("ReduceMean", ["square", "last"], ["mean"]),
        helper.make_node("Add", ["mean", "epsilon"], ["more"]),
        helper.make_node("Sqrt", ["more"], ["root"]),
        helper.make_node("Div", ["h", "root"], ["answer"]),
    ]
    eye = np.eye(8, dtype=np.float32)
    constants = {"w": eye, "last": np.array([1]), "epsilon": np.float32(1e-12)}
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    onnx.save(graph_of(nodes, {"x": ["n", 8]}, ["n", 8], constants), source)
    write_precision("fp16", source, target, list)
    onnx.checker.check_model(onnx.load(target), full_check=True)
    x = np.stack([np.linspace(300, 900, 8), np.zeros(8), np.linspace(-1, 1, 8)])
    feed = {"x": x.astype(np.float32)}
    assert np.abs(run_in_fp16(target, feed) - run(source, feed)).max() < 2e-3
