"""Graphs with one plausible fault each, which every proof must detect."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.errors import ConversionError
from converters.proof.reference import ProvedTask, Reference

LAYERS = ("MatMul", "Gemm", "Conv")
# Operators whose output has their input's shape: the graph still runs when one is left out.
NONLINEAR = (
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Gelu", "Erf", "Tanh", "Sigmoid", "HardSigmoid"),
    *("HardSwish", "Clip", "Softplus", "Mish"),
)
NORMALISING = (
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization"),
    *("RMSNormalization", "Softmax"),
)


def broken_graphs(
    task: ProvedTask, reference: Reference, source: Path, precision: str, folder: Path
) -> Iterator[tuple[str, list[Path]]]:
    """The kinds of fault, each with graphs that have it in different positions; no graph where
    there is nothing to break in that way."""
    yield "one layer skipped", list(skipped_layers(source, folder))
    yield "two units swapped", list(swapped_units(source, folder))
    yield "an operator left out", list(left_out(source, folder))
    yield "means of a layer off", list(shifted_means(source, folder))
    if task.has_mask:
        yield "mask dropped", list(dropped_mask(source, folder))
    if precision == "int8-static":
        yield "calibration on zeros", list(_calibrated_on_zeros(task, reference, source, folder))


def skipped_layers(source: Path, folder: Path) -> Iterator[Path]:
    """The graph with the weights of one layer set to zero, which skips the layer where a residual
    connection bypasses it; three such graphs, at the middle, the first and the third quarter. None
    without a layer."""
    return _changed_weights(source, folder, "skipped", np.zeros_like)


def swapped_units(source: Path, folder: Path) -> Iterator[Path]:
    """The graph with the first and the last column of a layer's weights swapped."""

    def swap(weights: np.ndarray) -> np.ndarray:
        swapped = weights.copy()
        swapped[..., [0, -1]] = swapped[..., [-1, 0]]
        return swapped

    return islice(_changed_weights(source, folder, "swapped", swap), 1)


def _changed_weights(
    source: Path, folder: Path, prefix: str, change: Callable[[np.ndarray], np.ndarray]
) -> Iterator[Path]:
    model = onnx.load(source)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [
        node.input[1]
        for node in model.graph.node
        if node.op_type in LAYERS and len(node.input) > 1 and node.input[1] in weights
    ]
    for position in _positions(len(layers)):
        tensor = weights[layers[position]]
        original = onnx.TensorProto()
        original.CopyFrom(tensor)
        values = numpy_helper.to_array(tensor)
        changed = change(values)
        if not np.array_equal(changed, values):
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
            path = folder / f"{prefix}-{position}.onnx"
            onnx.save(model, path)
            tensor.CopyFrom(original)
            yield path


def left_out(source: Path, folder: Path) -> Iterator[Path]:
    """The graph with one operator replaced by Identity: a nonlinearity, then a normalisation."""
    model = onnx.load(source)
    for operators in (NONLINEAR, NORMALISING):
        nodes = [node for node in model.graph.node if node.op_type in operators]
        for position in _positions(len(nodes))[:1]:
            node, original = nodes[position], onnx.NodeProto()
            original.CopyFrom(node)
            node.CopyFrom(helper.make_node("Identity", [original.input[0]], [original.output[0]]))
            path = folder / f"without-{original.op_type}.onnx"
            onnx.save(model, path)
            node.CopyFrom(original)
            yield path


def shifted_means(source: Path, folder: Path) -> Iterator[Path]:
    """The graph with a constant added to every unit of its middle layer: a tenth of what the
    layer's largest input would give if all weights of the unit had the same sign."""
    model = onnx.load(source)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    layers = [
        index
        for index, node in enumerate(graph.node)
        if node.op_type in LAYERS
        and node.input[1] in weights
        and weights[node.input[1]].data_type == onnx.TensorProto.FLOAT
        and (node.op_type == "Conv" or len(weights[node.input[1]].dims) == 2)
    ]
    for position in _positions(len(layers))[:1]:
        node = graph.node[layers[position]]
        matrix = numpy_helper.to_array(weights[node.input[1]])
        if node.op_type == "Conv":
            sizes = np.linalg.norm(matrix.reshape(len(matrix), -1), axis=1)
            sizes = sizes.reshape(-1, *[1] * (matrix.ndim - 2))
        else:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            sizes = np.linalg.norm(matrix, axis=1 if transposed else 0)
        shift = numpy_helper.from_array((0.1 * sizes).astype(np.float32), "tidegate_shift")
        graph.initializer.append(shift)
        output, unshifted = node.output[0], "tidegate_unshifted"
        node.output[0] = unshifted
        added = [
            helper.make_node("Abs", [node.input[0]], ["tidegate_sizes"]),
            helper.make_node("ReduceMax", ["tidegate_sizes"], ["tidegate_largest"], keepdims=0),
            helper.make_node("Mul", ["tidegate_largest", shift.name], ["tidegate_offset"]),
            helper.make_node("Add", [unshifted, "tidegate_offset"], [output]),
        ]
        for index, new in enumerate(added, start=layers[position] + 1):
            graph.node.insert(index, new)
        path = folder / "means-off.onnx"
        onnx.save(model, path)
        yield path


def _positions(count: int) -> list[int]:
    return list(dict.fromkeys(count * part // 4 for part in (2, 1, 3))) if count else []


def dropped_mask(source: Path, folder: Path) -> Iterator[Path]:
    """The graph with every token of its ``attention_mask`` treated as part of the text."""
    model = onnx.load(source)
    graph = model.graph
    if not any(value.name == "attention_mask" for value in graph.input):
        return
    for node in graph.node:
        node.input[:] = ["all_ones" if name == "attention_mask" else name for name in node.input]
    one = numpy_helper.from_array(np.array([1], dtype=np.int64), "tidegate_one")
    graph.node.insert(0, helper.make_node("Shape", ["attention_mask"], ["tidegate_shape"]))
    ones = helper.make_node("ConstantOfShape", ["tidegate_shape"], ["all_ones"], value=one)
    graph.node.insert(1, ones)
    path = folder / "dropped.onnx"
    onnx.save(model, path)
    yield path


def _calibrated_on_zeros(
    task: ProvedTask, reference: Reference, source: Path, folder: Path
) -> Iterator[Path]:
    from converters.precisions.write import write_precision

    first = next(iter(task.feeds(reference)))
    if not task.has_mask and all(values.dtype.kind in "iub" for values in first.values()):
        return  # 0 is an id like any other, and its row of the table has the range of the others

    def zeros() -> Iterator[Mapping[str, np.ndarray]]:
        yield {n: v if v.dtype == object else np.zeros_like(v) for n, v in first.items()}

    path = folder / "zeros.onnx"
    try:
        write_precision("int8-static", source, path, zeros)
    except ConversionError:
        return  # the precision itself refuses such a calibration
    yield path
