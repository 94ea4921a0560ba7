"""Weights and activations in 8 bits, activations rounded by the range of their own row.

What int8-dynamic does for the whole batch is done here for each row (token), by ONNX's own
operators around one integer product: so an answer does not depend on who shares its batch. Four
things make it close to the original as well; what each brought on MiniLM is in docs/precisions.md:

- *smoothing*: a channel that is always large would decide the scale of every row, so that channels
  are divided by a constant, measured on samples, and the weights multiplied by it;
- *one-sided* inputs (what comes out of GELU or ReLU) are moved to begin at 0, and have 256 steps
  instead of 128;
- a row is rounded in up to four pieces, each by its own range;
- the products that cost the most accuracy for their size stay FP32, as measured on samples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from converters.closeness import row_cosines
from converters.errors import ExportFailed
from converters.precisions.graph import drop_unused, gemm_to_matmul, load_tidy, replace
from converters.precisions.row_rounding import Ranges, Rounding

Feed = Mapping[str, np.ndarray]
Feeds = Callable[[], Iterable[Feed]]

FP32_SHARE = 0.125  # of all multiplications
RANGE_SAMPLES, SENSITIVITY_SAMPLES = 64, 8


def write_int8_rows(source: Path, target: Path, feeds: Feeds) -> None:
    """ExportFailed if nothing can be quantised, or if ``feeds`` gives no sample."""
    model = load_tidy(source)
    gemm_to_matmul(model.graph)
    products = _products(model.graph)
    if not products:
        raise ExportFailed(
            "nothing was quantised: int8-rows is for matrix multiplications with constant weights, "
            "and this graph has none. For convolutions use --precision int8, else fp32"
        )
    samples = list(islice(iter(feeds()), RANGE_SAMPLES))
    if not samples:
        raise ExportFailed(
            "int8-rows needs samples to measure its channels on, and there are none: give "
            "--samples, some hundred real inputs"
        )
    ranges = _ranges(model, products, samples)
    kept = _sensitive(model, products, ranges, samples[:SENSITIVITY_SAMPLES])
    rounding = Rounding(model, products, ranges)
    nodes = []
    for node in model.graph.node:
        rounded = node.name in rounding.weights and node.name not in kept
        nodes += rounding.nodes(node, node.output[0]) if rounded else [node]
    _save(model, nodes, target)


def _products(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    floats = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2
    }
    return [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in floats]


def _ranges(
    model: onnx.ModelProto, products: Sequence[onnx.NodeProto], samples: Sequence[Feed]
) -> dict[str, Ranges]:
    """What each product's input is like; by the input's name."""
    names = list(dict.fromkeys(node.input[0] for node in products))
    watched = _copy(model)
    known = {value.name for value in [*watched.graph.output, *watched.graph.input]}
    for name in names:
        if name not in known:
            value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            watched.graph.output.append(value)
    session, inputs = _session(watched), {value.name for value in model.graph.input}
    made = [name for name in names if name not in inputs]
    found: dict[str, Ranges] = {}
    for feed in samples:
        answers = dict(zip(made, session.run(made, dict(feed)), strict=True)) if made else {}
        for name in names:
            values = np.asarray(feed[name] if name in inputs else answers[name])
            rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
            found[name] = _joined(found.get(name), Ranges(rows.min(axis=0), rows.max(axis=0)))
    return found


def _joined(one: Ranges | None, other: Ranges) -> Ranges:
    if one is None:
        return other
    return Ranges(np.minimum(one.lowest, other.lowest), np.maximum(one.highest, other.highest))


def _sensitive(
    model: onnx.ModelProto,
    products: Sequence[onnx.NodeProto],
    ranges: Mapping[str, Ranges],
    samples: Sequence[Feed],
) -> set[str]:
    """The names of the products that stay FP32: those whose rounding alone moves the answers most
    for each multiplication, as many as ``FP32_SHARE`` allows."""
    session = _session(_switched(model, products, ranges))
    off = {_switch(node): np.zeros(1, np.float32) for node in products}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    sizes = {node.name: int(np.prod(weights[node.input[1]].dims)) for node in products}
    losses = dict.fromkeys(sizes, 0.0)
    for feed in samples:
        wanted = session.run(None, {**feed, **off})[0]
        for node in products:
            on = {**feed, **off, _switch(node): np.ones(1, np.float32)}
            losses[node.name] += 1 - row_cosines(session.run(None, on)[0], wanted).mean()
    allowed, kept = FP32_SHARE * sum(sizes.values()), set()
    for name in sorted(losses, key=lambda name: -losses[name] / sizes[name]):
        if sizes[name] <= allowed:
            allowed -= sizes[name]
            kept.add(name)
    return kept


def _switched(
    model: onnx.ModelProto, products: Sequence[onnx.NodeProto], ranges: Mapping[str, Ranges]
) -> onnx.ModelProto:
    """The graph with every product in both forms, and an input for each that chooses: one session
    then measures all of them."""
    both = _copy(model)
    rounding = Rounding(both, products, ranges)
    nodes: list[onnx.NodeProto] = []
    for node in both.graph.node:
        if node.name not in rounding.weights:
            nodes.append(node)
            continue
        answer, full, rounded = node.output[0], f"{node.name}_full", f"{node.name}_rounded"
        nodes += rounding.nodes(node, rounded)
        node.output[0] = full
        nodes.append(node)
        for kind, inputs, output in (
            ("Sub", [rounded, full], f"{node.name}_gap"),
            ("Mul", [f"{node.name}_gap", _switch(node)], f"{node.name}_step"),
            ("Add", [full, f"{node.name}_step"], answer),
        ):
            nodes.append(helper.make_node(kind, inputs, [output], f"{output}_switched"))
        both.graph.input.append(
            helper.make_tensor_value_info(_switch(node), TensorProto.FLOAT, [1])
        )
    replace(both.graph.node, nodes)
    _add_domain(both)
    return both


def _switch(node: onnx.NodeProto) -> str:
    return f"{node.name}_switch"


def _save(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], target: Path) -> None:
    replace(model.graph.node, nodes)
    drop_unused(model.graph)
    _add_domain(model)
    onnx.save(model, target)


def _add_domain(model: onnx.ModelProto) -> None:
    if all(each.domain != "com.microsoft" for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One thread: the same sums in the same order, and so the same bytes each time.
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
