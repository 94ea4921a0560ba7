"""A graph as it is opened on a CPU: faster, with the answers of the file as it is."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

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


def check_answers(file: Path, feed: dict[str, np.ndarray]) -> None:
    """The answers of the graph as the backend opens it are those of ONNX Runtime's defaults."""
    answers = ort_cpu.open_on_cpu(file, exact()).run(None, feed)
    for answer, plain in zip(
        answers, onnxruntime.InferenceSession(file).run(None, feed), strict=True
    ):
        np.testing.assert_array_equal(answer, plain)


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
    check_answers(file, feed)


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


IN_FUNCTION = helper.make_function(
    "my",
    "MatMulInteger",
    ["a", "b", "none", "z"],
    ["o"],
    [
        helper.make_node("Cast", ["b"], ["bf"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["a"], ["af"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["af", "bf"], ["o"]),
    ],
    [helper.make_opsetid("", 18)],
)


def lstm(zero: int, *, second_is_output: bool = False) -> onnx.ModelProto:
    """``DynamicQuantizeLSTM`` of zero points for each channel; all its weights have one type."""
    random, width, hidden = np.random.default_rng(0), 32, 8
    first, second = (
        random.integers(0, 256, (1, rows, 4 * hidden)).astype(np.uint8) for rows in (width, hidden)
    )
    zeros = np.full((1, 4 * hidden), zero, np.uint8)
    scales = np.full((1, 4 * hidden), 0.01, np.float32)
    constants = {"w": first, "r": second, "ws": scales, "wz": zeros, "rs": scales, "rz": zeros}
    inputs = ["x", "w", "r", "", "", "", "", "", "ws", "wz", "rs", "rz"]
    node = helper.make_node(
        "DynamicQuantizeLSTM", inputs, ["y"], domain="com.microsoft", hidden_size=hidden
    )
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    if second_is_output:
        outputs.append(helper.make_tensor_value_info("r", U8, second.shape))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 2, width])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "lstm", [x], outputs, tensors)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def of_a_function() -> onnx.ModelProto:
    """A local function has an operator's name, and does something else."""
    node = helper.make_node("MatMulInteger", ["x", "w", "", "z"], ["y0"], domain="my")
    model = integers(node, w=WEIGHTS, z=ZERO)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    model.opset_import.append(helper.make_opsetid("my", 1))
    model.functions.append(IN_FUNCTION)
    return model


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lstm(120), id="zero points that are not the middle"),
        pytest.param(lstm(128, second_is_output=True), id="two weights of one type"),
        pytest.param(of_a_function(), id="an operator's name in another domain"),
    ],
)
def test_what_only_looks_like_weights_that_may_be_shifted_is_left_alone(
    tmp_path, monkeypatch, model
):
    monkeypatch.setattr(ort_cpu, "multiplies_signed", lambda: True)
    file = tmp_path / "model.onnx"
    onnx.save(model, file)
    random = np.random.default_rng(1)
    feed = (
        {"x": random.integers(0, 256, (3, 4)).astype(np.uint8)}
        if model.functions
        else {"x": random.standard_normal((5, 2, 32)).astype(np.float32)}
    )
    with ort_cpu._fastest(file) as path:
        assert path == file
    check_answers(file, feed)


def test_weights_of_every_channel_are_shifted_in_an_lstm_around_the_middle(tmp_path, monkeypatch):
    monkeypatch.setattr(ort_cpu, "multiplies_signed", lambda: True)
    file = tmp_path / "model.onnx"
    onnx.save(lstm(128), file)
    with ort_cpu._fastest(file) as path:
        assert weight_types(onnx.load_from_string(path.read_bytes())) == {S8}
    feed = {"x": np.random.default_rng(1).standard_normal((5, 2, 32)).astype(np.float32)}
    check_answers(file, feed)


def test_data_files_that_a_node_reads_are_found_beside_the_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(ort_cpu, "multiplies_signed", lambda: True)
    outside = numpy_helper.from_array(np.arange(1024, dtype=np.float32), "outside")
    external_data_helper.set_external_data(outside, "weights.bin", 0, 4096)
    (tmp_path / "weights.bin").write_bytes(outside.raw_data)
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    constant = helper.make_node("Constant", [], ["y1"], value=outside)
    model = integers(UNSHARED, constant, outputs=2, w=WEIGHTS, z=ZERO)
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString())
    feed = {"x": np.array([[1, 2, 3, 4]], np.uint8)}
    _, values = ort_cpu.open_on_cpu(file, exact()).run(None, feed)
    np.testing.assert_array_equal(values, np.arange(1024, dtype=np.float32))


def test_the_name_of_the_file_says_nothing_of_its_format(tmp_path, monkeypatch):
    monkeypatch.setattr(ort_cpu, "multiplies_signed", lambda: True)
    file = tmp_path / "model.json"
    file.write_bytes(integers(UNSHARED, w=WEIGHTS, z=ZERO).SerializeToString())
    with ort_cpu._fastest(file) as path:
        assert weight_types(onnx.load_from_string(path.read_bytes())) == {S8}


@pytest.mark.parametrize("content", [b"not a graph of MatMulInteger", None])
def test_a_file_that_is_no_graph_is_refused_as_by_onnx_runtime(tmp_path, monkeypatch, content):
    monkeypatch.setattr(ort_cpu, "multiplies_signed", lambda: True)
    file = tmp_path / "model.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Exception) as plain:
        onnxruntime.InferenceSession(file)
    with pytest.raises(type(plain.value)) as ours:
        ort_cpu.open_on_cpu(file, onnxruntime.SessionOptions())
    assert str(ours.value) == str(plain.value)
