"""Weights and activations in 8 bits, activations rounded by the range of their own row.

What int8-dynamic does for the whole batch is done here for each row (token), by ONNX's own
operators around one integer product: so an answer does not depend on who shares its batch. Three
things make it close to the original as well; what each brought on MiniLM is in docs/precisions.md:

- *smoothing*: a channel that is always large would decide the scale of every row, so that channels
  are divided by a constant, measured on samples, and the weights multiplied by it;
- *one-sided* inputs (what comes out of GELU or ReLU) are moved to begin at 0, and have 256 steps
  instead of 128;
- the products that cost the most accuracy for their size stay FP32, as measured on samples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.closeness import row_cosines
from converters.errors import ExportFailed
from converters.precisions.graph import drop_unused, gemm_to_matmul, load_tidy, replace

Feed = Mapping[str, np.ndarray]
Feeds = Callable[[], Iterable[Feed]]

SMOOTHING = 0.65  # between 0 (all in the activations) and 1 (all in the weights)
ONE_SIDED = 0.25  # the lowest is nearer to 0 than the highest, by this
FP32_SHARE = 0.125  # of all multiplications
RANGE_SAMPLES, SENSITIVITY_SAMPLES = 64, 8
SIGNED, UNSIGNED = (127, 128), (255, 0)  # steps, and the zero point
PIECES, PIECE = 4, 192  # the most pieces of a row, and the least width of one
TINY = 1e-30  # a row of zeros has no scale


@dataclass(frozen=True)
class Ranges:
    """Of one input, by channel FP64 [width]: what was seen on the samples."""

    lowest: np.ndarray
    highest: np.ndarray

    @property
    def one_sided(self) -> bool:
        return bool(-self.lowest.min() < ONE_SIDED * self.highest.max())


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


def pieces_of(width: int) -> int:
    """How many pieces a row of this width is rounded in, each by a range of its own."""
    return next((n for n in range(PIECES, 1, -1) if width % n == 0 and width // n >= PIECE), 1)


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


class Rounding:
    """Writes a product with its rows rounded; an input that several products read is rounded once.

    ``weights`` has the products' matrices, by the node's name.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        products: Sequence[onnx.NodeProto],
        ranges: Mapping[str, Ranges],
    ) -> None:
        self._graph, self._ranges = model.graph, ranges
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.weights = {
            node.name: numpy_helper.to_array(constants[node.input[1]]).astype(np.float64)
            for node in products
        }
        self._readers: dict[str, list[str]] = {}
        for node in products:
            self._readers.setdefault(node.input[0], []).append(node.name)
        self._rounded: dict[str, tuple[list[tuple[str, str]], np.ndarray]] = {}
        for steps, zero in (SIGNED, UNSIGNED):
            self._constant(f"rows8_step_{steps}", np.float32(1 / steps))
            self._constant(f"rows8_zero_{zero}", np.uint8(zero))
        self._constant("rows8_axis", np.array([-1], dtype=np.int64))
        self._constant("rows8_tiny", np.float32(TINY))

    def nodes(self, node: onnx.NodeProto, answer: str) -> list[onnx.NodeProto]:
        """The same product, into the tensor ``answer``: the sum of its pieces."""
        source, name = node.input[0], node.name
        made = [] if source in self._rounded else self._round(source)
        pieces, factors = self._rounded[source]
        weights = np.split(self.weights[name] * factors[:, None], len(pieces))
        sums, moved = [], np.zeros(weights[0].shape[1])
        lowest = np.split(self._ranges[source].lowest / factors, len(pieces))
        for place, (piece, matrix, low) in enumerate(zip(pieces, weights, lowest, strict=True)):
            column = np.maximum(np.abs(matrix).max(axis=0), TINY) / 127
            rounded = np.clip(np.rint(matrix / column), -127, 127)
            moved += low @ (rounded * column)
            part = f"{name}_{place}"
            made += self._product(source, part, piece, rounded.astype(np.int8), column)
            sums.append(f"{part}_scaled")
        if self._ranges[source].one_sided:
            sums.append(self._constant(f"{name}_back", moved.astype(np.float32)))
        for place, term in enumerate(sums[1:], start=1):
            total = answer if place == len(sums) - 1 else f"{name}_sum{place}"
            made.append(helper.make_node("Add", [sums[0], term], [total], f"{name}_add{place}"))
            sums[0] = total
        if len(sums) == 1:
            made[-1].output[0] = answer
        return made

    def _product(
        self,
        source: str,
        part: str,
        piece: tuple[str, str],
        weights: np.ndarray,
        column: np.ndarray,
    ) -> list[onnx.NodeProto]:
        steps, zero = self._kind(source)
        inputs = [
            piece[0],
            self._constant(f"{part}_int8", weights),
            f"rows8_step_{steps}",
            self._constant(f"{part}_columns", column.astype(np.float32)),
            f"rows8_zero_{zero}",
        ]
        product, scaled = f"{part}_product", f"{part}_scaled"
        return [
            helper.make_node(
                "MatMulIntegerToFloat", inputs, [product], product, domain="com.microsoft"
            ),
            helper.make_node("Mul", [product, piece[1]], [scaled], scaled),
        ]

    def _kind(self, source: str) -> tuple[int, int]:
        return UNSIGNED if self._ranges[source].one_sided else SIGNED

    def _round(self, source: str) -> list[onnx.NodeProto]:
        """The input in 8 bits, and the scale of each row [..., 1]."""
        ranges, (steps, zero) = self._ranges[source], self._kind(source)
        factors = np.ones(len(ranges.lowest)) if ranges.one_sided else self._smoothing(source)
        if ranges.one_sided:
            lowest = self._constant(f"{source}_lowest", ranges.lowest.astype(np.float32))
            even = f"{source}_moved"
            made = [helper.make_node("Sub", [source, lowest], [even], f"{source}_move")]
        else:
            inverse = self._constant(f"{source}_inverse", (1 / factors).astype(np.float32))
            even = f"{source}_even"
            made = [helper.make_node("Mul", [source, inverse], [even], f"{source}_smooth")]
        count = pieces_of(len(factors))
        parts = [even] if count == 1 else [f"{even}_{place}" for place in range(count)]
        if count > 1:
            made.append(
                helper.make_node(
                    "Split", [even], parts, f"{even}_split", axis=-1, num_outputs=count
                )
            )
        pieces = []
        for part in parts:
            made += self._scaled(part, steps, zero)
            pieces.append((f"{part}_uint8", f"{part}_scale"))
        self._rounded[source] = (pieces, factors)
        return made

    def _scaled(self, part: str, steps: int, zero: int) -> list[onnx.NodeProto]:
        size, most, scale, unit, rounded = (
            f"{part}_{each}" for each in ("size", "most", "scale", "unit", "uint8")
        )
        step = [f"rows8_step_{steps}", f"rows8_zero_{zero}"]
        # What is one-sided is not below 0, but for what the samples have not shown.
        absolute = [helper.make_node("Abs", [part], [size], size)] if zero else []
        return [
            *absolute,
            helper.make_node("ReduceMax", [size if zero else part, "rows8_axis"], [most], most),
            helper.make_node("Max", [most, "rows8_tiny"], [scale], scale),
            helper.make_node("Div", [part, scale], [unit], unit),
            helper.make_node("QuantizeLinear", [unit, *step], [rounded], rounded),
        ]

    def _smoothing(self, source: str) -> np.ndarray:
        """What each channel is divided by: FP64 [width], their geometric mean 1."""
        ranges = self._ranges[source]
        size = np.maximum(np.maximum(ranges.highest, -ranges.lowest), 1e-6)
        weights = np.concatenate([self.weights[name] for name in self._readers[source]], axis=1)
        heaviest = np.maximum(np.abs(weights).max(axis=1), 1e-6)
        factors = size**SMOOTHING / heaviest ** (1 - SMOOTHING)
        return np.asarray(factors / np.exp(np.log(factors).mean()))

    def _constant(self, name: str, values: "np.ndarray | np.generic") -> str:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name


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
