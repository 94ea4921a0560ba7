"""The graph that is served: one input a column, the library's answer, labels sorted by score."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from converters.tabular.category_graph import CategorySplits
from converters.tabular.graph_names import ALL, OPSET, TIDEGATE_DOMAIN, VECTORIZE
from converters.tabular.tree_graph import TreeParts, linear_parts, tree_parts
from converters.tabular.trees2onnx import ML_DOMAIN, ML_OPSET, Tree

# ONNX Runtime 1.31 reads up to 13, and older servers less; this is the one that opset 18 came with.
IR_VERSION = 8
ONNX_NUMBERS = {"FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE}
INNER, OWN = "model/", "tidegate/"
OUTPUTS = ("label", "score", "value")
TERMS = re.compile(r"terms\d+_(ids|values)")


@dataclass(frozen=True)
class Shape:
    """What the public graph looks like. ``columns`` are metadata as the declaration has them: name,
    tensor, is_text; ``number`` is FP32 or FP64; ``labels`` are empty for a regression; ``order``
    are the columns that the inner graph's inputs are, none if it takes them stacked; ``texts`` are
    metadata of the vectorizers, in their order: ids, values, size."""

    columns: Sequence[Mapping[str, Any]]
    number: str
    labels: Sequence[str]
    order: Sequence[str] = ()
    texts: Sequence[Mapping[str, Any]] = ()


def tensor_name(column: str) -> str:
    """What the column's public tensor is called: as the column, unless another tensor is."""
    own = column.startswith((INNER, OWN)) or TERMS.fullmatch(column)
    taken = column in OUTPUTS or own or not column
    return f"{column}_column" if taken else column


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
    ``missing`` are read as NaN."""
    if not categories:
        made = tree_parts(trees, start, link, narrow=narrow, source=ALL, missing=missing)
        return _parts_graph(made, features)
    wide = "with_categories"
    made = tree_parts(trees, start, link, narrow=narrow, source=wide, missing=missing)
    graph = _parts_graph(made, features, wide)
    nodes, held = categories.nodes(ALL, wide)
    inner = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend([*nodes, *inner])
    graph.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in held.items())
    return graph


def linear_graph(
    weights: np.ndarray,
    bias: np.ndarray,
    start: np.ndarray,
    link: str,
    *,
    missing: Sequence[float] = (),
) -> onnx.ModelProto:
    """``link(start + bias + x @ weights)``, a missing number counting for nothing: ``ALL`` FP64
    [n, features] -> one output FP64 [n, width]. ``weights`` FP64 [features, width]."""
    made = linear_parts(weights, start + bias, link, source=ALL, missing=missing)
    return _parts_graph(made, len(weights))


def _parts_graph(made: TreeParts, features: int, source: str = ALL) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(ALL, TensorProto.DOUBLE, [None, features])]
    outputs = [helper.make_tensor_value_info(f"{source}_answer", TensorProto.DOUBLE, [None, None])]
    graph = helper.make_graph(made.nodes(), "trees", inputs, outputs, made.initializers())
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(ML_DOMAIN, ML_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def public_graph(inner: onnx.ModelProto, shape: Shape) -> onnx.ModelProto:
    """``inner`` (TabularModel.graph) with the columns' tensors before it, each [n, 1], and behind
    it ``label`` and ``score`` [n, labels], the likeliest first, or ``value`` [n, 1]."""
    model = compose.add_prefix(inner, INNER)
    answer = model.graph.output[0].name
    spread, sizes = _spread(model, shape.texts)
    front = _front(model, shape)
    back, constants, outputs = _back(answer, shape.labels)
    nodes = [*front, *spread, *model.graph.node, *back]
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        [node for node in nodes if read & set(node.output) or node.output[0] in OUTPUTS],
        "table",
        [*_inputs(shape), *_text_inputs(shape.texts)],
        outputs,
        [*model.graph.initializer, *sizes, *constants],
    )
    # skl2onnx writes for OPSET and then declares the least that its operators have.
    opsets = [each for each in model.opset_import if each.domain not in ("", TIDEGATE_DOMAIN)]
    opsets.append(helper.make_opsetid("", OPSET))
    made = helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, functions=model.functions
    )
    onnx.checker.check_model(made)
    return made


def _inputs(shape: Shape) -> list[onnx.ValueInfoProto]:
    """The columns that the engine itself reads: a text may be for the vectorizers alone."""
    direct = [column for column in shape.columns if column.get("direct", True)]
    return [_input(column, shape.number) for column in direct]


def _text_inputs(texts: Sequence[Mapping[str, Any]]) -> list[onnx.ValueInfoProto]:
    held = [(each["ids"], TensorProto.INT64) for each in texts]
    held += [(each["values"], TensorProto.DOUBLE) for each in texts]
    return [
        helper.make_tensor_value_info(name, kind, ["rows", f"{name}_length"]) for name, kind in held
    ]


def _spread(
    model: onnx.ModelProto, texts: Sequence[Mapping[str, Any]]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Takes the ``VECTORIZE`` nodes out of the model; nodes that make from the terms what they
    stood for, [n, size]: zeros, the values put in their places, one place more for padding."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    vectorizers = [node for node in model.graph.node if node.op_type == VECTORIZE]
    for node in vectorizers:
        text = texts[next(a.i for a in node.attribute if a.name == "place")]
        ids, values, size = text["ids"], text["values"], int(text["size"])
        own = {key: f"{OWN}{ids}_{key}" for key in ("shape", "first", "full", "zeros", "all")}
        numbers = {"none": 0, "one": 1, "width": size + 1, "size": size}
        named = {key: f"{OWN}{ids}_{key}" for key in numbers}
        nodes += [
            helper.make_node("Shape", [ids], [own["first"]], start=0, end=1),
            helper.make_node("Concat", [own["first"], named["width"]], [own["full"]], axis=0),
            helper.make_node(
                "ConstantOfShape", [own["full"]], [own["zeros"]], value=_double_zero()
            ),
            helper.make_node("ScatterElements", [own["zeros"], ids, values], [own["all"]], axis=1),
            helper.make_node(
                "Slice",
                [own["all"], named["none"], named["size"], named["one"]],
                [node.output[0]],
            ),
        ]
        constants += [
            numpy_helper.from_array(np.array([number], dtype=np.int64), named[key])
            for key, number in numbers.items()
        ]
        model.graph.node.remove(node)
    return nodes, constants


def _double_zero() -> onnx.TensorProto:
    return helper.make_tensor("zero", TensorProto.DOUBLE, [1], [0.0])


def _input(column: Mapping[str, Any], number: str) -> onnx.ValueInfoProto:
    kind = TensorProto.STRING if column["is_text"] else ONNX_NUMBERS[number]
    return helper.make_tensor_value_info(column["tensor"], kind, ["rows", 1])


def _front(model: onnx.ModelProto, shape: Shape) -> list[onnx.NodeProto]:
    """From the public inputs to the inner ones, whatever number type these have."""
    inputs = list(model.graph.input)
    if not shape.order:
        stacked, kind = inputs[0].name, inputs[0].type.tensor_type.elem_type
        tensors = [column["tensor"] for column in shape.columns]
        return [
            helper.make_node("Concat", tensors, [f"{OWN}stacked"], axis=1),
            helper.make_node("Cast", [f"{OWN}stacked"], [stacked], to=kind),
        ]
    tensors_of = {column["name"]: column["tensor"] for column in shape.columns}
    # A column that the model drops is an input of the inner graph that nothing reads.
    apart = {column["name"] for column in shape.columns if not column.get("direct", True)}
    return [
        helper.make_node(
            "Cast", [tensors_of[name]], [each.name], to=each.type.tensor_type.elem_type
        )
        for name, each in zip(shape.order, inputs, strict=True)
        if name in tensors_of and name not in apart
    ]


def _back(
    answer: str, labels: Sequence[str]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], list[onnx.ValueInfoProto]]:
    if not labels:
        column = numpy_helper.from_array(np.array([-1, 1], dtype=np.int64), f"{OWN}one_column")
        nodes = [
            helper.make_node("Cast", [answer], [f"{OWN}narrow"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", [f"{OWN}narrow", f"{OWN}one_column"], ["value"]),
        ]
        return nodes, [column], [_output("value", TensorProto.FLOAT, 1)]
    count = len(labels)
    names = numpy_helper.from_array(np.array(labels, dtype=object), f"{OWN}label_names")
    every = numpy_helper.from_array(np.array([count], dtype=np.int64), f"{OWN}label_count")
    nodes = [
        # In the library's own precision, so that nothing is a tie that is none there.
        helper.make_node(
            "TopK", [answer, f"{OWN}label_count"], [f"{OWN}sorted", f"{OWN}places"], axis=1
        ),
        helper.make_node("Cast", [f"{OWN}sorted"], ["score"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{OWN}label_names", f"{OWN}places"], ["label"]),
    ]
    outputs = [
        _output("label", TensorProto.STRING, count),
        _output("score", TensorProto.FLOAT, count),
    ]
    return nodes, [names, every], outputs


def _output(name: str, kind: int, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["rows", width])
