"""The served graph: one input per column, the library's prediction, labels sorted by score."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from converters.export.category_graph import CategorySplits
from converters.export.graph_names import ALL, OPSET, TIDEGATE_DOMAIN, VECTORIZE
from converters.export.tree_graph import TreeParts, linear_parts, tree_parts
from converters.export.trees2onnx import ML_DOMAIN, ML_OPSET, Tree

# ONNX Runtime 1.31 reads up to 13, older servers less; opset 18 came with this one.
IR_VERSION = 8
ONNX_NUMBERS = {"FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE}
INNER_PREFIX, OWN_PREFIX = "model/", "tidegate/"
OUTPUTS = ("label", "score", "value")
TERMS = re.compile(r"terms\d+_(ids|values)")


@dataclass(frozen=True)
class Shape:
    """The public graph's interface. ``columns`` are metadata as in the declaration: name, tensor,
    is_text; ``number`` is FP32 or FP64; ``labels`` are empty for a regression; ``order`` are the
    columns of the inner graph's inputs, empty if it takes them stacked; ``texts`` are metadata of
    the vectorizers, in their order: ids, values, size."""

    columns: Sequence[Mapping[str, Any]]
    number: str
    labels: Sequence[str]
    order: Sequence[str] = ()
    texts: Sequence[Mapping[str, Any]] = ()


def tensor_name(column: str) -> str:
    """The name of the column's public tensor: the column's, unless another tensor has it."""
    is_reserved = column.startswith((INNER_PREFIX, OWN_PREFIX)) or TERMS.fullmatch(column)
    conflicts = column in OUTPUTS or is_reserved or not column
    return f"{column}_column" if conflicts else column


def tree_graph(
    trees: Sequence[Tree],
    start: np.ndarray,
    link: str,
    features: int,
    *,
    narrow: bool,
    missing: Sequence[float] = (),
    categories: CategorySplits | None = None,
) -> onnx.ModelProto:
    """A graph of trees alone: ``ALL`` FP64 [n, features] -> one output FP64 [n, width]. The numbers
    in ``missing`` are read as NaN."""
    if not categories:
        parts = tree_parts(trees, start, link, narrow=narrow, source=ALL, missing=missing)
        return _parts_graph(parts, features)
    with_sets = "with_categories"
    parts = tree_parts(trees, start, link, narrow=narrow, source=with_sets, missing=missing)
    graph = _parts_graph(parts, features, with_sets)
    nodes, constants = categories.nodes(ALL, with_sets)
    tree_nodes = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend([*nodes, *tree_nodes])
    graph.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    return graph


def linear_graph(
    weights: np.ndarray,
    bias: np.ndarray,
    start: np.ndarray,
    link: str,
    *,
    missing: Sequence[float] = (),
) -> onnx.ModelProto:
    """``link(start + bias + x @ weights)``, where a missing number contributes nothing: ``ALL``
    FP64 [n, features] -> one output FP64 [n, width]. ``weights`` FP64 [features, width]."""
    parts = linear_parts(weights, start + bias, link, source=ALL, missing=missing)
    return _parts_graph(parts, len(weights))


def _parts_graph(parts: TreeParts, features: int, source: str = ALL) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(ALL, TensorProto.DOUBLE, [None, features])]
    outputs = [helper.make_tensor_value_info(f"{source}_answer", TensorProto.DOUBLE, [None, None])]
    graph = helper.make_graph(parts.nodes(), "trees", inputs, outputs, parts.initializers())
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(ML_DOMAIN, ML_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def public_graph(inner: onnx.ModelProto, shape: Shape) -> onnx.ModelProto:
    """``inner`` (TabularModel.graph) preceded by the columns' tensors, each [n, 1], and followed by
    ``label`` and ``score`` [n, labels], the likeliest first, or ``value`` [n, 1]."""
    model = compose.add_prefix(inner, INNER_PREFIX)
    inner_output = model.graph.output[0].name
    term_nodes, sizes = _expand_terms(model, shape.texts)
    input_nodes = _input_nodes(model, shape)
    output_nodes, constants, outputs = _output_nodes(inner_output, shape.labels)
    nodes = [*input_nodes, *term_nodes, *model.graph.node, *output_nodes]
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        [node for node in nodes if read & set(node.output) or node.output[0] in OUTPUTS],
        "table",
        [*_inputs(shape), *_text_inputs(shape.texts)],
        outputs,
        [*model.graph.initializer, *sizes, *constants],
    )
    # skl2onnx targets OPSET and then declares the lowest version that its operators need.
    opsets = [opset for opset in model.opset_import if opset.domain not in ("", TIDEGATE_DOMAIN)]
    opsets.append(helper.make_opsetid("", OPSET))
    public = helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, functions=model.functions
    )
    onnx.checker.check_model(public)
    return public


def _inputs(shape: Shape) -> list[onnx.ValueInfoProto]:
    """The columns that the engine itself reads: a text may be for the vectorizers only."""
    direct = [column for column in shape.columns if column.get("direct", True)]
    return [_input(column, shape.number) for column in direct]


def _text_inputs(texts: Sequence[Mapping[str, Any]]) -> list[onnx.ValueInfoProto]:
    tensors = [(text["ids"], TensorProto.INT64) for text in texts]
    tensors += [(text["values"], TensorProto.DOUBLE) for text in texts]
    return [
        helper.make_tensor_value_info(name, dtype, ["rows", f"{name}_length"])
        for name, dtype in tensors
    ]


def _expand_terms(
    model: onnx.ModelProto, texts: Sequence[Mapping[str, Any]]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Remove the ``VECTORIZE`` nodes from the model; return nodes that compute their outputs [n,
    size] from the terms: zeros, with the values scattered to their ids, and one extra column for
    padding."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    vectorizers = [node for node in model.graph.node if node.op_type == VECTORIZE]
    for node in vectorizers:
        text = texts[next(a.i for a in node.attribute if a.name == "index")]
        ids, values, size = text["ids"], text["values"], int(text["size"])
        tensors = {
            key: f"{OWN_PREFIX}{ids}_{key}" for key in ("shape", "first", "full", "zeros", "all")
        }
        numbers = {"none": 0, "one": 1, "width": size + 1, "size": size}
        constant_names = {key: f"{OWN_PREFIX}{ids}_{key}" for key in numbers}
        nodes += [
            helper.make_node("Shape", [ids], [tensors["first"]], start=0, end=1),
            helper.make_node(
                "Concat", [tensors["first"], constant_names["width"]], [tensors["full"]], axis=0
            ),
            helper.make_node(
                "ConstantOfShape", [tensors["full"]], [tensors["zeros"]], value=_double_zero()
            ),
            helper.make_node(
                "ScatterElements", [tensors["zeros"], ids, values], [tensors["all"]], axis=1
            ),
            helper.make_node(
                "Slice",
                [
                    tensors["all"],
                    constant_names["none"],
                    constant_names["size"],
                    constant_names["one"],
                ],
                [node.output[0]],
            ),
        ]
        constants += [
            numpy_helper.from_array(np.array([number], dtype=np.int64), constant_names[key])
            for key, number in numbers.items()
        ]
        model.graph.node.remove(node)
    return nodes, constants


def _double_zero() -> onnx.TensorProto:
    return helper.make_tensor("zero", TensorProto.DOUBLE, [1], [0.0])


def _input(column: Mapping[str, Any], number: str) -> onnx.ValueInfoProto:
    dtype = TensorProto.STRING if column["is_text"] else ONNX_NUMBERS[number]
    return helper.make_tensor_value_info(column["tensor"], dtype, ["rows", 1])


def _input_nodes(model: onnx.ModelProto, shape: Shape) -> list[onnx.NodeProto]:
    """Nodes from the public inputs to the inner ones, whatever datatype those have."""
    inputs = list(model.graph.input)
    if not shape.order:
        stacked, dtype = inputs[0].name, inputs[0].type.tensor_type.elem_type
        tensors = [column["tensor"] for column in shape.columns]
        return [
            helper.make_node("Concat", tensors, [f"{OWN_PREFIX}stacked"], axis=1),
            helper.make_node("Cast", [f"{OWN_PREFIX}stacked"], [stacked], to=dtype),
        ]
    tensors_of = {column["name"]: column["tensor"] for column in shape.columns}
    # Nothing reads the inner graph's input for a column that the model drops.
    text_only = {column["name"] for column in shape.columns if not column.get("direct", True)}
    return [
        helper.make_node(
            "Cast", [tensors_of[name]], [inner.name], to=inner.type.tensor_type.elem_type
        )
        for name, inner in zip(shape.order, inputs, strict=True)
        if name in tensors_of and name not in text_only
    ]


def _output_nodes(
    output: str, labels: Sequence[str]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], list[onnx.ValueInfoProto]]:
    if not labels:
        shape = numpy_helper.from_array(
            np.array([-1, 1], dtype=np.int64), f"{OWN_PREFIX}one_column"
        )
        nodes = [
            helper.make_node("Cast", [output], [f"{OWN_PREFIX}narrow"], to=TensorProto.FLOAT),
            helper.make_node(
                "Reshape", [f"{OWN_PREFIX}narrow", f"{OWN_PREFIX}one_column"], ["value"]
            ),
        ]
        return nodes, [shape], [_output("value", TensorProto.FLOAT, 1)]
    count = len(labels)
    names = numpy_helper.from_array(np.array(labels, dtype=object), f"{OWN_PREFIX}label_names")
    width = numpy_helper.from_array(np.array([count], dtype=np.int64), f"{OWN_PREFIX}label_count")
    nodes = [
        # In the library's own precision, so that there is no tie that the library does not have.
        helper.make_node(
            "TopK",
            [output, f"{OWN_PREFIX}label_count"],
            [f"{OWN_PREFIX}sorted", f"{OWN_PREFIX}places"],
            axis=1,
        ),
        helper.make_node("Cast", [f"{OWN_PREFIX}sorted"], ["score"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{OWN_PREFIX}label_names", f"{OWN_PREFIX}places"], ["label"]),
    ]
    outputs = [
        _output("label", TensorProto.STRING, count),
        _output("score", TensorProto.FLOAT, count),
    ]
    return nodes, [names, width], outputs


def _output(name: str, dtype: int, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, ["rows", width])
