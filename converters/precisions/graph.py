"""The common start of every precision: an FP32 graph, normalised for rewriting."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.errors import ExportFailed

# What scikit-learn's models become: thresholds and votes, where rounding changes the answer.
TABULAR = ("TreeEnsemble", "LinearClassifier", "LinearRegressor", "SVM")


def load_tidy(source: Path) -> onnx.ModelProto:
    """The graph of ``source``, ready to be rewritten; ExportFailed if it is made of trees and the
    like, whose numbers must not be rounded.

    Its constants are initializers, every node has a unique name, and no initializer has a second,
    stale shape: the exporter leaves some behind, and the quantisers then fail with "Inferred shape
    and existing shape differ".
    """
    model = onnx.load(source)
    _refuse_tabular(model.graph.node)
    _constants_as_initializers(model.graph)
    _name_nodes(model.graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    shapes = [value for value in model.graph.value_info if value.name not in constants]
    replace(model.graph.value_info, shapes)
    return model


def replace(field: object, values: Iterable[object]) -> None:
    """Set a repeated field of a proto to these values."""
    new = list(values)
    del field[:]  # type: ignore[attr-defined]
    field.extend(new)  # type: ignore[attr-defined]


def count(model: onnx.ModelProto, *operators: str) -> int:
    """The number of nodes with these operators."""
    return sum(node.op_type in operators for node in model.graph.node)


def gemm_to_matmul(graph: onnx.GraphProto) -> None:
    """Write each plain Gemm with constant weights as MatMul and Add: only MatMul has a weight-only
    kernel. A Gemm that also scales or transposes its input stays as it is."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += _matmul_and_add(node, graph, weights) if _is_plain_gemm(node, weights) else [node]
    replace(graph.node, nodes)


def _refuse_tabular(nodes: Iterable[onnx.NodeProto]) -> None:
    tabular = sorted({node.op_type for node in nodes if node.op_type.startswith(TABULAR)})
    if tabular:
        raise ExportFailed(
            f"the model is made of {', '.join(tabular)}: it has no matrices to make smaller, and "
            "rounding its thresholds would change its answers. Use --precision fp32"
        )


def _constants_as_initializers(graph: onnx.GraphProto) -> None:
    nodes = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type != "Constant" or value is None:
            nodes.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
    replace(graph.node, nodes)


def _name_nodes(graph: onnx.GraphProto) -> None:
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}_{node.output[0]}"
        taken.add(node.name)


def _is_plain_gemm(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "Gemm" or node.input[1] not in weights:
        return False
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    scaled = settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0
    return not scaled and not settings.get("transA", 0)


def _matmul_and_add(
    node: onnx.NodeProto, graph: onnx.GraphProto, weights: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    rows, weight, *bias = node.input
    if any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
        transposed = np.ascontiguousarray(numpy_helper.to_array(weights[weight]).T)
        weight = f"{node.name}_weight"
        graph.initializer.append(numpy_helper.from_array(transposed, weight))
    if not any(bias):
        return [helper.make_node("MatMul", [rows, weight], node.output, f"{node.name}_matmul")]
    product = f"{node.output[0]}_matmul"
    return [
        helper.make_node("MatMul", [rows, weight], [product], f"{node.name}_matmul"),
        helper.make_node("Add", [product, bias[0]], node.output, f"{node.name}_add"),
    ]


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove initializers that nothing reads any more, and duplicates of the same name."""
    read = {name for node in graph.node for name in names_read(node)}
    read |= {output.name for output in graph.output}
    used = {tensor.name: tensor for tensor in graph.initializer if tensor.name in read}
    replace(graph.initializer, used.values())


def names_read(node: onnx.NodeProto) -> set[str]:
    """A node's inputs, and the names that its subgraphs read."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            names |= {name for inner in graph.node for name in names_read(inner)}
            names |= {output.name for output in graph.output}
    return names
