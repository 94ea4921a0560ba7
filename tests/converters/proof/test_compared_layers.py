"""Faults that rounding hides at the end of a graph show layer by layer. They are planted into the
graph of each precision, whose answers are often as close as a correct graph's."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.precisions.write import PRECISIONS, write_precision
from converters.proof.checks import Check
from converters.proof.layers import Layers
from converters.proof.tolerance import LAYERS
from tests.converters.precisions.test_precision import attention, convolutions, graph_of, sentences

WIDTH = 12
EIGHT = [precision for precision in PRECISIONS if precision not in ("fp32", "fp16")]


def mlp() -> onnx.ModelProto:
    """Two hidden layers over x FP32 [n, 8], whose answers [n, 3] hardly vary: the bias is large and
    the samples are nearly alike."""
    random = np.random.default_rng(5)
    node = helper.make_node
    nodes = [
        node("Gemm", ["x", "w_1", "b_1"], ["first"]),
        node("Relu", ["first"], ["positive"]),
        node("LayerNormalization", ["positive", "scale"], ["even"]),
        node("Gemm", ["even", "w_2", "b_2"], ["second"]),
        node("Div", ["second", "root"], ["narrow"]),
        node("Erf", ["narrow"], ["curve"]),
        node("Add", ["curve", "one"], ["raised"]),
        node("Mul", ["second", "raised"], ["gelu"]),
        node("MatMul", ["gelu", "w_3"], ["answer"]),
    ]
    sizes = [8, WIDTH, WIDTH, 3]
    constants = {
        f"w_{number}": random.normal(0, 1.5 / np.sqrt(rows), (rows, columns)).astype(np.float32)
        for number, (rows, columns) in enumerate(pairwise(sizes), start=1)
    }
    constants |= {
        "b_1": random.normal(0, 1, WIDTH).astype(np.float32),
        "b_2": random.normal(0, 1, WIDTH).astype(np.float32),
        "scale": np.ones(WIDTH, np.float32),
        "root": np.float32(np.sqrt(2)),
        "one": np.float32(1),
    }
    return graph_of(nodes, {"x": ["n", 8]}, ["n", 3], constants)


def rows_nearly_alike() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(6)
    middle = random.normal(0, 1, (1, 8))
    return [{"x": (middle + random.normal(0, 0.02, (1, 8))).astype(np.float32)} for _ in range(16)]


def scorer() -> onnx.ModelProto:
    """One answer [n, 1] over x FP32 [n, 8] whose terms nearly cancel out."""
    random = np.random.default_rng(11)
    row = rows_nearly_alike()[0]["x"][0].astype(np.float64)
    weights = random.normal(0, 1, 8)
    weights -= 0.97 * row * (weights @ row) / (row @ row)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["answer"])]
    constants = {"w": weights[:, None].astype(np.float32)}
    return graph_of(nodes, {"x": ["n", 8]}, ["n", 1], constants)


def padded() -> list[dict[str, np.ndarray]]:
    """Sentences whose last position is padding."""
    feeds = sentences(8)
    for feed in feeds:
        feed["mask"][:, -1] = 0
    return feeds


def images() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(8)
    return [{"x": random.normal(0, 1, (1, 3, 16, 16)).astype(np.float32)} for _ in range(6)]


Model = tuple[Callable[[], onnx.ModelProto], Callable[[], list[dict[str, np.ndarray]]]]
MODELS: dict[str, Model] = {
    "mlp": (mlp, rows_nearly_alike),
    "scorer": (scorer, rows_nearly_alike),
    "attention": (lambda: attention(-100.0), padded),
    "attention, masked by the lowest number": (attention, padded),
    "convolutions": (convolutions, images),
}


def _changed(change: Callable[[np.ndarray], np.ndarray], name: str):
    def plant(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        values = change(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))

    return plant


def _left_out(operator: str):
    def plant(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == operator)
        node.CopyFrom(helper.make_node("Identity", [node.input[0]], [node.output[0]], node.name))

    return plant


def _mask_dropped(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["all" if name == "mask" else name for name in node.input]
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    model.graph.initializer.append(zero)
    nothing = helper.make_node("Mul", ["mask", "zero"], ["nothing"])
    model.graph.node.insert(0, nothing)
    model.graph.node.insert(1, helper.make_node("Add", ["nothing", "one"], ["all"]))


def _columns_swapped(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[:, [0, 1]] = values[:, [1, 0]]
    return values


FAULTS = {
    ("mlp", "hidden units swapped"): _changed(_columns_swapped, "w_1"),
    ("mlp", "second layer's units swapped"): _changed(_columns_swapped, "w_2"),
    ("mlp", "labels swapped"): _changed(_columns_swapped, "w_3"),
    ("mlp", "layer zeroed"): _changed(np.zeros_like, "w_2"),
    ("mlp", "layer negated"): _changed(np.negative, "w_2"),
    ("mlp", "layer transposed"): _changed(np.transpose, "w_2"),
    ("mlp", "layer scaled"): _changed(lambda values: values * np.float32(1.1), "w_2"),
    ("mlp", "bias shifted"): _changed(lambda values: np.roll(values, 1), "b_2"),
    ("mlp", "no Relu"): _left_out("Relu"),
    ("mlp", "no LayerNormalization"): _left_out("LayerNormalization"),
    ("mlp", "no Erf"): _left_out("Erf"),
    ("scorer", "negated"): _changed(np.negative, "w"),
    ("attention", "keys zeroed"): _changed(np.zeros_like, "w_k"),
    ("attention", "values negated"): _changed(np.negative, "w_v"),
    ("attention", "queries' units swapped"): _changed(_columns_swapped, "w_q"),
    ("attention", "no Softmax"): _left_out("Softmax"),
    ("attention", "no LayerNormalization"): _left_out("LayerNormalization"),
    ("attention", "mask dropped"): _mask_dropped,
    ("convolutions", "channels rolled"): _changed(lambda values: np.roll(values, 1, 0), "w_1"),
    ("convolutions", "last layer negated"): _changed(np.negative, "w_2"),
}


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory):
    """Write a model's graph, with or without a fault, in a precision, and return the file."""
    folder = tmp_path_factory.mktemp("graphs")

    def write(model: str, precision: str, fault: str = "") -> Path:
        make, feeds = MODELS[model]
        target = folder / f"{model} {fault} {precision}.onnx"
        if not target.exists():
            graph, source = make(), folder / f"{model} {fault}.onnx"
            if fault:
                FAULTS[model, fault](graph)
            onnx.save(graph, source)
            write_precision(precision, source, target, lambda: iter(feeds()))
        return target

    return write


def _failed(graph_file, model: str, engine: Path, precision: str) -> list[Check]:
    layers = Layers(graph_file(model, "fp32"), MODELS[model][1]())
    checks = layers.checks(engine, LAYERS[precision][0])
    assert checks
    return [check for check in checks if not check.passed]


def _supports(model: str, precision: str) -> bool:
    return model != "convolutions" or precision in ("fp32", "fp16", "int8-static")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", MODELS)
def test_a_correct_graph_passes(model, precision, graph_file):
    if _supports(model, precision):
        failed = _failed(graph_file, model, graph_file(model, precision), precision)
        assert [check.line() for check in failed] == []


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("model", "fault"), FAULTS)
def test_a_planted_fault_is_detected(model, fault, precision, graph_file):
    if _supports(model, precision):
        engine = graph_file(model, precision, fault)
        assert _failed(graph_file, model, engine, precision), "passed"


@pytest.mark.parametrize("precision", EIGHT)
def test_weights_in_8_bits_are_the_originals_whatever_the_samples_are(precision, tmp_path):
    """Two inputs are equal in every sample: swapping their rows of weights changes no answer."""
    feeds = [{"x": np.full((1, 8), value, np.float32)} for value in (0.5, 1, 2)]
    model = mlp()
    for name in ("good", "bad"):
        source = tmp_path / f"{name}.onnx"
        onnx.save(model, source)
        write_precision(precision, source, tmp_path / f"{name}-8.onnx", lambda: iter(feeds))
        _changed(lambda rows: rows[[1, 0, *range(2, len(rows))]], "w_1")(model)
    layers = Layers(tmp_path / "good.onnx", feeds)
    limits = LAYERS[precision][0]
    assert all(check.passed for check in layers.checks(tmp_path / "good-8.onnx", limits))
    failed = [c for c in layers.checks(tmp_path / "bad-8.onnx", limits) if not c.passed]
    assert [check.name for check in failed] == ["layers: weights that are not the original's"]
    assert failed[0].worst.startswith("w_1")


def _five_bits(values: np.ndarray) -> np.ndarray:
    step = np.abs(values).max() / 15
    return np.asarray(np.rint(values / step) * step)


@pytest.mark.parametrize("precision", EIGHT)
@pytest.mark.parametrize("name", ["w_1", "w_2", "w_3"])
def test_five_bits_are_not_eight(precision, name, graph_file, tmp_path):
    model = mlp()
    _changed(_five_bits, name)(model)
    onnx.save(model, tmp_path / "bad.onnx")
    feeds = rows_nearly_alike()
    engine = tmp_path / "bad-8.onnx"
    write_precision(precision, tmp_path / "bad.onnx", engine, lambda: iter(feeds))
    failed = [check.name for check in _failed(graph_file, "mlp", engine, precision)]
    assert "layers: weights that are not the original's" in failed


def _insert_after(tensor, operator, others, graph):
    """What read ``tensor`` reads the operator's output instead; ``others`` are its other inputs."""
    for node in graph.node:
        node.input[:] = ["inserted" if name == tensor else name for name in node.input]
    producer = next(index for index, node in enumerate(graph.node) if tensor in node.output)
    inserted = helper.make_node(operator, [tensor, *others], ["inserted"])
    graph.node.insert(producer + 1, inserted)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_operator_that_changes_nothing_here_is_detected(precision, graph_file, tmp_path):
    """A clip beyond all that these samples reach."""
    model = onnx.load(graph_file("mlp", precision))
    tensor = next(name for node in model.graph.node for name in node.output if "gelu" in name)
    dtype = np.float16 if tensor.endswith("_fp16") else np.float32
    for name, limit in (("low", -1e4), ("high", 1e4)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(limit, dtype), name))
    _insert_after(tensor, "Clip", ["low", "high"], model.graph)
    onnx.save(model, tmp_path / "bad.onnx")
    failed = _failed(graph_file, "mlp", tmp_path / "bad.onnx", precision)
    assert [(check.name, check.worst) for check in failed] == [
        ("layers: operators that the original does not have", "Clip")
    ]


@pytest.mark.parametrize("precision", ["int8-per-row", "int8-dynamic"])
@pytest.mark.parametrize(
    ("operator", "constant"), [("Max", -1e4), ("Add", 0.0), ("Sub", 0.0), ("Div", 1.0)]
)
@pytest.mark.parametrize("tensor", ["gelu", "answer"])
def test_arithmetic_that_integers_need_is_detected_elsewhere(
    precision, operator, constant, tensor, graph_file, tmp_path
):
    """Products of integers come with each of these operators: one more is not one of theirs, also
    if it changes nothing here, and if it follows such a product."""
    model = onnx.load(graph_file("mlp", precision))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(constant), "planted"))
    if tensor == "answer":
        for node in model.graph.node:
            node.output[:] = ["exact" if name == tensor else name for name in node.output]
        model.graph.node.append(helper.make_node(operator, ["exact", "planted"], [tensor]))
    else:
        _insert_after(tensor, operator, ["planted"], model.graph)
    onnx.save(model, tmp_path / "bad.onnx")
    failed = _failed(graph_file, "mlp", tmp_path / "bad.onnx", precision)
    assert [check.worst for check in failed if "operators" in check.name] == [operator]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_temperature_of_one_percent_is_detected(precision, graph_file, tmp_path):
    """In 8 bits each answer stays within rounding: the factor itself is what the original lacks."""
    model = onnx.load(graph_file("mlp", "fp32"))
    output = model.graph.output[0].name
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1 / 1.01), "temperature"))
    for node in model.graph.node:
        node.output[:] = ["cold" if name == output else name for name in node.output]
    model.graph.node.append(helper.make_node("Mul", ["cold", "temperature"], [output]))
    source, engine = tmp_path / "warm.onnx", tmp_path / "engine.onnx"
    onnx.save(model, source)
    write_precision(precision, source, engine, lambda: iter(MODELS["mlp"][1]()))
    failed = _failed(graph_file, "mlp", engine, precision)
    if precision != "fp32":
        assert [check.worst for check in failed if "operators" in check.name] == ["Mul"]
    assert failed


@pytest.mark.parametrize("model", ["mlp", "convolutions"])
def test_scales_measured_on_zeros_are_detected(model, graph_file, tmp_path):
    make, feeds = MODELS[model]
    onnx.save(make(), tmp_path / "source.onnx")
    engine = tmp_path / "engine.onnx"
    zeros = [{name: np.zeros_like(values) for name, values in feed.items()} for feed in feeds()]
    write_precision("int8-static", tmp_path / "source.onnx", engine, lambda: iter(zeros))
    assert _failed(graph_file, model, engine, "int8-static")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_inserted_operator_is_detected(precision, graph_file, tmp_path):
    """Inserted into the precision's graph, under a name that the original does not have."""
    model = onnx.load(graph_file("mlp", precision))
    reader = next(node for node in model.graph.node if "even" in "".join(node.input))
    tensor = next(name for name in reader.input if "even" in name)
    _insert_after(tensor, "Neg", [], model.graph)
    onnx.save(model, tmp_path / "bad.onnx")
    assert _failed(graph_file, "mlp", tmp_path / "bad.onnx", precision)


def _with_offset(engine: Path, target: Path, share: float, units: slice) -> None:
    """Write the engine with a constant added to some units of a layer: a share of its output."""
    model = onnx.load(engine)
    graph = model.graph
    output = {"mlp": "second", "attention": "k", "convolutions": "second"}[target.stem]
    producer = next(node for node in graph.node if output in node.output)
    axis = 1 if target.stem == "convolutions" else -1
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.append(onnx.ValueInfoProto(name=output))
    session = onnxruntime.InferenceSession(watched.SerializeToString())
    feeds = MODELS[target.stem][1]()
    numbers = [np.moveaxis(session.run([output], feed)[0], axis, -1) for feed in feeds]
    rows = np.concatenate([n.reshape(-1, n.shape[-1]) for n in numbers])
    shift = np.zeros(rows.shape[1], np.float32)
    shift[units] = share * np.sqrt((rows**2).mean())
    shape = (-1, 1, 1) if axis == 1 else (-1,)
    graph.initializer.append(numpy_helper.from_array(shift.reshape(shape), "shift"))
    producer.output[list(producer.output).index(output)] = "unshifted"
    index = list(graph.node).index(producer) + 1
    graph.node.insert(index, helper.make_node("Add", ["unshifted", "shift"], [output]))
    onnx.save(model, target)


@pytest.mark.parametrize("precision", EIGHT)
@pytest.mark.parametrize("model", ["mlp", "attention", "convolutions"])
def test_a_shifted_mean_is_no_rounding(model, precision, graph_file, tmp_path):
    """A tenth of a layer's output in every unit, or a third in one, is less than ``column`` allows
    8 bits; rounding, however, averages out."""
    if not _supports(model, precision):
        return
    target = tmp_path / f"{model}.onnx"
    for share, units in ((0.1, slice(None)), (0.33, slice(1, 2))):
        _with_offset(graph_file(model, precision), target, share, units)
        assert _failed(graph_file, model, target, precision), f"{share} passed"


def test_a_tensor_that_is_quantised_behind_a_transposition_is_a_rounded_one(tmp_path):
    """ONNX Runtime moves the quantisation before the Transpose: the tensor that the transposition
    reads has been rounded, and a correct graph was refused for it."""
    random = np.random.default_rng(13)
    nodes = [
        *(helper.make_node("MatMul", ["x", f"w_{part}"], [f"{part}_product"]) for part in "qk"),
        *(helper.make_node("Add", [f"{part}_product", f"b_{part}"], [part]) for part in "qk"),
        helper.make_node("Transpose", ["k"], ["k_t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "k_t"], ["raw"]),
        helper.make_node("ReduceMean", ["raw", "axis"], ["answer"], keepdims=0),
    ]
    constants: dict[str, np.ndarray] = {"axis": np.array([1])}
    for part in "qk":
        constants[f"w_{part}"] = random.normal(0, 0.2, (32, 32)).astype(np.float32)
        constants[f"b_{part}"] = random.normal(0, 0.2, 32).astype(np.float32)
    model = graph_of(nodes, {"x": ["n", 12, 32]}, ["n", 12], constants)
    feeds = [{"x": random.normal(0, 1, (1, 12, 32)).astype(np.float32)} for _ in range(12)]
    source, engine = tmp_path / "source.onnx", tmp_path / "engine.onnx"
    onnx.save(model, source)
    write_precision("int8-static", source, engine, lambda: iter(feeds))
    checks = Layers(source, feeds).checks(engine, LAYERS["int8-static"][0])
    assert [check.line() for check in checks if not check.passed] == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_a_table_that_no_sample_reads_are_compared(precision, tmp_path):
    random = np.random.default_rng(9)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"]),
        helper.make_node("MatMul", ["words", "w"], ["answer"]),
    ]
    tensors = [
        numpy_helper.from_array(random.normal(0, 1, shape).astype(np.float32), name)
        for name, shape in {"table": (50, 8), "w": (8, 4)}.items()
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])]
    outputs = [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["n", 4])]
    graph = helper.make_graph(nodes, "words", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    feeds = [{"ids": np.array([3, 5])}, {"ids": np.array([7, 1])}]
    for name in ("good", "bad"):
        onnx.save(model, tmp_path / f"{name}.onnx")
        write_precision(
            precision, tmp_path / f"{name}.onnx", tmp_path / f"{name}-8.onnx", lambda: iter(feeds)
        )
        _changed(lambda rows: np.concatenate([rows[:40], rows[:39:-1]]), "table")(model)
    layers = Layers(tmp_path / "good.onnx", feeds)
    limits = LAYERS[precision][0]
    assert all(check.passed for check in layers.checks(tmp_path / "good-8.onnx", limits))
    (failed,) = [c for c in layers.checks(tmp_path / "bad-8.onnx", limits) if not c.passed]
    assert failed.name == "layers: weights that are not the original's"
    assert failed.worst.startswith("table")
