"""Weights and activations in 8 bits, activations rounded by the range of their own row.

What int8-dynamic does for the whole batch is done here for each row (token), with standard ONNX
operators around an integer product, so that an answer does not depend on who shares its batch. Four
measures keep it close to the original; docs/precisions.md has the effect of each on MiniLM:

- *smoothing*: a channel that is always large would determine the scale of every row, so each
  channel is divided by a constant, measured on samples, and the weights are multiplied by it;
- *one-sided* inputs (outputs of GELU or ReLU) are shifted to begin at 0, and have 256 steps instead
  of 128;
- a row is rounded in up to four pieces, each by its own range;
- the products that cost the most accuracy for their size, measured on samples, stay FP32.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from converters.cosine import row_cosines
from converters.errors import ExportFailed
from converters.precisions.graph import drop_unused, gemm_to_matmul, load_tidy, replace
from converters.precisions.row_rounding import Ranges, Rounding

Feed = Mapping[str, np.ndarray]
Feeds = Callable[[], Iterable[Feed]]

FP32_SHARE = 0.125  # of all multiplications stay FP32
RANGE_SAMPLES, SENSITIVITY_SAMPLES = 64, 8


def write_int8_per_row(source: Path, target: Path, feeds: Feeds) -> None:
    """ExportFailed if nothing can be quantised, or if ``feeds`` gives no sample."""
    model = load_tidy(source)
    gemm_to_matmul(model.graph)
    products = _products(model.graph)
    if not products:
        raise ExportFailed(
            "nothing was quantised: int8-per-row is for matrix multiplications with constant "
            "weights, and this graph has none. For convolutions use --precision int8-static, else "
            "fp32"
        )
    samples = list(islice(iter(feeds()), RANGE_SAMPLES))
    if not samples:
        raise ExportFailed(
            "int8-per-row needs samples to measure its channels on, and there are none: give "
            "--samples, some hundred real inputs"
        )
    ranges = _ranges(model, products, samples)
    sensitive = _sensitive(model, products, ranges, samples[:SENSITIVITY_SAMPLES])
    rounding = Rounding(model, products, ranges)
    nodes = []
    for node in model.graph.node:
        rounded = node.name in rounding.weights and node.name not in sensitive
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
    """The range of each product's input, by the input's name."""
    names = list(dict.fromkeys(node.input[0] for node in products))
    watched = _copy(model)
    known = {value.name for value in [*watched.graph.output, *watched.graph.input]}
    for name in names:
        if name not in known:
            value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            watched.graph.output.append(value)
    session, inputs = _session(watched), {value.name for value in model.graph.input}
    computed = [name for name in names if name not in inputs]
    ranges: dict[str, Ranges] = {}
    for feed in samples:
        outputs = session.run(computed, dict(feed)) if computed else []
        tensors = dict(zip(computed, outputs, strict=True))
        for name in names:
            values = np.asarray(feed[name] if name in inputs else tensors[name])
            rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
            ranges[name] = _joined(ranges.get(name), Ranges(rows.min(axis=0), rows.max(axis=0)))
    return ranges


def _joined(a: Ranges | None, b: Ranges) -> Ranges:
    if a is None:
        return b
    return Ranges(np.minimum(a.lowest, b.lowest), np.maximum(a.highest, b.highest))


def _sensitive(
    model: onnx.ModelProto,
    products: Sequence[onnx.NodeProto],
    ranges: Mapping[str, Ranges],
    samples: Sequence[Feed],
) -> set[str]:
    """The names of the products that stay FP32: those whose rounding alone moves the answers most
    per multiplication, as many as ``FP32_SHARE`` allows."""
    session = _session(_switched(model, products, ranges))
    off = {_switch(node): np.zeros(1, np.float32) for node in products}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    sizes = {node.name: int(np.prod(weights[node.input[1]].dims)) for node in products}
    losses = dict.fromkeys(sizes, 0.0)
    for feed in samples:
        expected = session.run(None, {**feed, **off})[0]
        for node in products:
            on = {**feed, **off, _switch(node): np.ones(1, np.float32)}
            losses[node.name] += 1 - row_cosines(session.run(None, on)[0], expected).mean()
    allowed, sensitive = FP32_SHARE * sum(sizes.values()), set()
    for name in sorted(losses, key=lambda name: -losses[name] / sizes[name]):
        if sizes[name] <= allowed:
            allowed -= sizes[name]
            sensitive.add(name)
    return sensitive


def _switched(
    model: onnx.ModelProto, products: Sequence[onnx.NodeProto], ranges: Mapping[str, Ranges]
) -> onnx.ModelProto:
    """The graph with every product in FP32 and rounded, and an input per product that selects one:
    a single session then measures all of them."""
    both = _copy(model)
    rounding = Rounding(both, products, ranges)
    nodes: list[onnx.NodeProto] = []
    for node in both.graph.node:
        if node.name not in rounding.weights:
            nodes.append(node)
            continue
        output, full, rounded = node.output[0], f"{node.name}_full", f"{node.name}_rounded"
        nodes += rounding.nodes(node, rounded)
        node.output[0] = full
        nodes.append(node)
        for operator, inputs, result in (
            ("Sub", [rounded, full], f"{node.name}_gap"),
            ("Mul", [f"{node.name}_gap", _switch(node)], f"{node.name}_step"),
            ("Add", [full, f"{node.name}_step"], output),
        ):
            nodes.append(helper.make_node(operator, inputs, [result], f"{result}_switched"))
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
    if all(opset.domain != "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One thread: the same sums in the same order, and so the same bytes every time.
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
