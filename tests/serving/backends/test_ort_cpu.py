"""A graph as it is opened on a CPU: faster, with the answers of the file as it is."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.precisions.write import write_precision
from tests.converters.precisions.test_precision_exact import PAIRS, WIDTH, extremes, save

sys.path.insert(0, str(Path(__file__).parents[3] / "serving" / "backends" / "onnxruntime"))

import ort_cpu

U8, S8 = TensorProto.UINT8, TensorProto.INT8
FEEDS = {
    "MatMul": ({"w": PAIRS}, (40, WIDTH), {}),
    "Gemm": ({"w": PAIRS}, (40, WIDTH), {}),
    "Conv": ({"w": np.resize(PAIRS, (WIDTH, WIDTH, 3, 3))}, (2, WIDTH, 8, 8), {}),
    "LSTM": (
        {"w": np.resize(PAIRS, (1, 4 * WIDTH, WIDTH)), "r": PAIRS.repeat(4, 0)[None]},
        (3, 2, WIDTH),
        {"hidden_size": WIDTH},
    ),
}


def exact() -> onnxruntime.SessionOptions:
    """Options with which ONNX Runtime multiplies signed weights without VNNI too, if slowly."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def weight_types(model: onnx.ModelProto) -> set[int]:
    return {tensor.data_type for tensor in model.graph.initializer if tensor.data_type in (U8, S8)}


@pytest.mark.parametrize(
    ("operator", "precision"),
    [
        *((operator, "int8-static") for operator in ("MatMul", "Gemm", "Conv")),
        *((operator, "int8-per-row") for operator in ("MatMul", "Gemm")),
        *((operator, "int8-dynamic") for operator in ("MatMul", "LSTM")),
    ],
)
def test_weights_are_signed_where_that_is_fast_and_answers_are_the_same(
    tmp_path, monkeypatch, operator, precision
):
    constants, shape, attributes = FEEDS[operator]
    constants = {name: np.ascontiguousarray(value) * 0.05 for name, value in constants.items()}
    save(tmp_path, operator, constants, [*shape[:-1], shape[-1]], **attributes)
    feed = {"x": extremes(*shape)}
    file = tmp_path / "model.onnx"
    write_precision(precision, tmp_path / "source.onnx", file, lambda: [feed])
    expected = onnxruntime.InferenceSession(file).run(None, feed)[0]

    monkeypatch.setattr(ort_cpu, "multiplies_signed", lambda: True)
    with ort_cpu._fastest(file) as path:
        shifted = onnx.load_from_string(path.read_bytes())
        options = exact()
        options.log_severity_level = 4
    before, after = weight_types(onnx.load(file)), weight_types(shifted)
    assert U8 in before and S8 in after
    np.testing.assert_array_equal(ort_cpu.open_on_cpu(file, exact()).run(None, feed)[0], expected)

    monkeypatch.setattr(ort_cpu, "multiplies_signed", lambda: False)
    with ort_cpu._fastest(file) as path:
        assert path == file


def integers(*nodes: onnx.NodeProto, outputs: int = 1, **constants: np.ndarray) -> onnx.ModelProto:
    """Nodes that read ``x`` (UINT8) and constants, and write ``y0``, ``y1``, ... of any type."""
    types = {"MatMulInteger": TensorProto.INT32}
    last = {name: node.op_type for node in nodes for name in node.output}
    values = [
        helper.make_tensor_value_info(name, types.get(last[name], TensorProto.FLOAT), None)
        for name in (f"y{index}" for index in range(outputs))
    ]
    x = helper.make_tensor_value_info("x", U8, ["n", 4])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "small", [x], values, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


WEIGHTS = np.array([[0, 255], [128, 1], [7, 200], [130, 90]], np.uint8)
ZERO, HALF = np.uint8(0), np.float32(0.5)
PRODUCT = helper.make_node("MatMulInteger", ["x", "w", "z", "z"], ["y0"])
UNSHARED = helper.make_node("MatMulInteger", ["x", "w", "", "z"], ["y0"])
SCALED = helper.make_node("DequantizeLinear", ["w", "s", "z"], ["y1"])
CAST = helper.make_node("Cast", ["w"], ["y1"], to=TensorProto.FLOAT)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param(
            integers(UNSHARED, w=WEIGHTS, z=ZERO),
            {S8},
            id="any zero point",
        ),
        pytest.param(integers(PRODUCT, w=WEIGHTS, z=ZERO), {U8}, id="zero point of both operands"),
        pytest.param(
            integers(helper.make_node("MatMulInteger", ["x", "w"], ["y0"]), w=WEIGHTS),
            {U8},
            id="no zero point",
        ),
        pytest.param(
            integers(
                UNSHARED,
                CAST,
                outputs=2,
                w=WEIGHTS,
                z=ZERO,
            ),
            {U8},
            id="read elsewhere",
        ),
        pytest.param(
            integers(
                UNSHARED,
                SCALED,
                outputs=2,
                w=WEIGHTS,
                z=ZERO,
                s=HALF,
            ),
            {U8},
            id="scaled for a caller",
        ),
    ],
)
def test_only_weights_that_nobody_else_reads_are_shifted(tmp_path, monkeypatch, model, expected):
    monkeypatch.setattr(ort_cpu, "multiplies_signed", lambda: True)
    file = tmp_path / "model.onnx"
    onnx.save(model, file)
    feed = {"x": np.array([[1, 255, 0, 13], [255, 255, 255, 255]], np.uint8)}
    with ort_cpu._fastest(file) as path:
        assert weight_types(onnx.load_from_string(path.read_bytes())) == expected
    answers = ort_cpu.open_on_cpu(file, exact()).run(None, feed)
    for answer, plain in zip(
        answers, onnxruntime.InferenceSession(file).run(None, feed), strict=True
    ):
        np.testing.assert_array_equal(answer, plain)


def test_the_weights_of_a_loop_are_left_alone(tmp_path, monkeypatch):
    """A graph inside a node reads the outer graph's constants by name."""
    monkeypatch.setattr(ort_cpu, "multiplies_signed", lambda: True)
    inner = helper.make_graph(
        [helper.make_node("Cast", ["w"], ["inner"], to=TensorProto.FLOAT)],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    branch = helper.make_node("If", ["yes"], ["y1"], then_branch=inner, else_branch=inner)
    model = integers(UNSHARED, branch, outputs=2, w=WEIGHTS, z=ZERO, yes=np.bool_(True))
    onnx.save(model, tmp_path / "model.onnx")
    with ort_cpu._fastest(tmp_path / "model.onnx") as path:
        assert path == tmp_path / "model.onnx"


def test_sums_and_norms_are_not_merged(tmp_path):
    nodes = [
        helper.make_node("Add", ["x", "w"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "w", "w"], ["y0"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y0",)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 4])
    tensors = [numpy_helper.from_array(np.ones(4, np.float32), "w")]
    graph = helper.make_graph(nodes, "norm", [x], values, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort_cpu.open_on_cpu(tmp_path / "model.onnx", options)
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators == ["Add", "LayerNormalization"]
