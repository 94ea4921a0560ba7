"""What every precision starts from: an FP32 graph in a form that the rewriting can rely on."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.errors import ExportFailed

# What scikit-learn's models become: thresholds and votes, where a rounded number is another answer.
TABULAR = ("TreeEnsemble", "LinearClassifier", "LinearRegressor", "SVM")


def load_tidy(source: Path) -> onnx.ModelProto:
    """The graph of ``source``, ready to be rewritten; ExportFailed where that makes no sense.

    Its constants are initializers, every node has a name of its own, and no initializer has a
    second, stale shape: the exporter leaves some behind, and the quantisers then stop with
    "Inferred shape and existing shape differ".
    """
    model = onnx.load(source)
    _refuse_tabular(model.graph.node)
    _constants_as_initializers(model.graph)
    _name_nodes(model.graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    shapes = [each for each in model.graph.value_info if each.name not in constants]
    replace(model.graph.value_info, shapes)
    return model


def replace(field: object, values: Iterable[object]) -> None:
    """Put these values into a repeated field of a proto."""
    kept = list(values)
    del field[:]  # type: ignore[attr-defined]
    field.extend(kept)  # type: ignore[attr-defined]


def count(model: onnx.ModelProto, *kinds: str) -> int:
    """How many nodes are of these kinds."""
    return sum(node.op_type in kinds for node in model.graph.node)


def gemm_to_matmul(graph: onnx.GraphProto) -> None:
    """Write each plain Gemm with constant weights as MatMul and Add: only MatMul has a weight-only
    kernel. A Gemm that also scales or transposes its input stays as it is."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += _split(node, graph, weights) if _plain_gemm(node, weights) else [node]
    replace(graph.node, nodes)


def _refuse_tabular(nodes: Iterable[onnx.NodeProto]) -> None:
    found = sorted({node.op_type for node in nodes if node.op_type.startswith(TABULAR)})
    if found:
        raise ExportFailed(
            f"the model is made of {', '.join(found)}: it has no matrices to make smaller, and "
            "rounding its thresholds would change its answers. Use --precision fp32"
        )


def _constants_as_initializers(graph: onnx.GraphProto) -> None:
    nodes = []
    for node in graph.node:
        value = next((each.t for each in node.attribute if each.name == "value"), None)
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


def _plain_gemm(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "Gemm" or node.input[1] not in weights:
        return False
    settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    scaled = settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0
    return not scaled and not settings.get("transA", 0)


def _split(
    node: onnx.NodeProto, graph: onnx.GraphProto, weights: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    rows, weight, *bias = node.input
    if any(each.name == "transB" and each.i for each in node.attribute):
        turned = np.ascontiguousarray(numpy_helper.to_array(weights[weight]).T)
        weight = f"{node.name}_weight"
        graph.initializer.append(numpy_helper.from_array(turned, weight))
    if not any(bias):
        return [helper.make_node("MatMul", [rows, weight], node.output, f"{node.name}_matmul")]
    product = f"{node.output[0]}_matmul"
    return [
        helper.make_node("MatMul", [rows, weight], [product], f"{node.name}_matmul"),
        helper.make_node("Add", [product, bias[0]], node.output, f"{node.name}_add"),
    ]


def drop_unused(graph: onnx.GraphProto) -> None:
    """Take out initializers that nothing reads any more, and second copies of one name."""
    read = {name for node in graph.node for name in names_read(node)}
    read |= {output.name for output in graph.output}
    kept = {tensor.name: tensor for tensor in graph.initializer if tensor.name in read}
    replace(graph.initializer, kept.values())


def names_read(node: onnx.NodeProto) -> set[str]:
    """A node's inputs, and what its subgraphs take from outside."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            names |= {name for inner in graph.node for name in names_read(inner)}
            names |= {output.name for output in graph.output}
    return names
