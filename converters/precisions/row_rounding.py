"""A product of rows and constant weights, written with the rows rounded to 8 bits: the operators of
``int8-per-row``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.precisions.unsigned import CENTRE

SMOOTHING = 0.65  # between 0 (all in the activations) and 1 (all in the weights)
ONE_SIDED = 0.25  # one-sided: the lowest value is below 0 by at most this share of the highest
SIGNED, UNSIGNED = (127, 128), (255, 0)  # steps, and the zero point
PIECES, PIECE = 4, 192  # the maximum number of pieces of a row, and their minimum width
TINY = 1e-30  # a row of zeros has no scale


@dataclass(frozen=True)
class Ranges:
    """The lowest and highest values of one input over the samples, per channel: FP64 [width]."""

    lowest: np.ndarray
    highest: np.ndarray

    @property
    def one_sided(self) -> bool:
        return bool(-self.lowest.min() < ONE_SIDED * self.highest.max())


def pieces_of(width: int) -> int:
    """The number of pieces in which a row of this width is rounded, each by its own range."""
    return next((n for n in range(PIECES, 1, -1) if width % n == 0 and width // n >= PIECE), 1)


class Rounding:
    """Writes products with rounded rows; an input that several products read is rounded once.

    ``weights``: the matrices of the products, by node name.
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
            self._constant(f"int8_per_row_step_{steps}", np.float32(1 / steps))
            self._constant(f"int8_per_row_zero_{zero}", np.uint8(zero))
        self._constant("int8_per_row_centre", np.uint8(CENTRE))
        # Since opset 18, ReduceMax reads its axes and Split has num_outputs.
        self._axes_are_inputs = _opset(model) >= 18
        if self._axes_are_inputs:
            self._constant("int8_per_row_axis", np.array([-1], dtype=np.int64))
        self._constant("int8_per_row_tiny", np.float32(TINY))

    def nodes(self, node: onnx.NodeProto, output: str) -> list[onnx.NodeProto]:
        """The nodes of the same product, as the sum of its pieces, into the tensor ``output``."""
        source, name = node.input[0], node.name
        nodes = [] if source in self._rounded else self._round(source)
        pieces, factors = self._rounded[source]
        weights = np.split(self.weights[name] * factors[:, None], len(pieces))
        terms, offset = [], np.zeros(weights[0].shape[1])
        lowest = np.split(self._ranges[source].lowest / factors, len(pieces))
        for index, (piece, matrix, low) in enumerate(zip(pieces, weights, lowest, strict=True)):
            scale = np.maximum(np.abs(matrix).max(axis=0), TINY) / 127
            rounded = np.clip(np.rint(matrix / scale), -127, 127)
            offset += low @ (rounded * scale)
            part = f"{name}_{index}"
            nodes += self._product(source, part, piece, (rounded + CENTRE).astype(np.uint8), scale)
            terms.append(f"{part}_scaled")
        if self._ranges[source].one_sided:
            terms.append(self._constant(f"{name}_back", offset.astype(np.float32)))
        for index, term in enumerate(terms[1:], start=1):
            total = output if index == len(terms) - 1 else f"{name}_sum{index}"
            nodes.append(helper.make_node("Add", [terms[0], term], [total], f"{name}_add{index}"))
            terms[0] = total
        if len(terms) == 1:
            nodes[-1].output[0] = output
        return nodes

    def _product(
        self,
        source: str,
        part: str,
        piece: tuple[str, str],
        weights: np.ndarray,
        scale: np.ndarray,
    ) -> list[onnx.NodeProto]:
        steps, zero = self._encoding(source)
        inputs = [
            piece[0],
            self._constant(f"{part}_weights", weights),
            f"int8_per_row_step_{steps}",
            self._constant(f"{part}_columns", scale.astype(np.float32)),
            f"int8_per_row_zero_{zero}",
            "int8_per_row_centre",
        ]
        product, scaled = f"{part}_product", f"{part}_scaled"
        return [
            helper.make_node(
                "MatMulIntegerToFloat", inputs, [product], product, domain="com.microsoft"
            ),
            helper.make_node("Mul", [product, piece[1]], [scaled], scaled),
        ]

    def _encoding(self, source: str) -> tuple[int, int]:
        return UNSIGNED if self._ranges[source].one_sided else SIGNED

    def _round(self, source: str) -> list[onnx.NodeProto]:
        """The nodes that round the input to 8 bits and compute the scale of each row [..., 1]."""
        ranges, (steps, zero) = self._ranges[source], self._encoding(source)
        factors = np.ones(len(ranges.lowest)) if ranges.one_sided else self._smoothing(source)
        if ranges.one_sided:
            lowest = self._constant(f"{source}_lowest", ranges.lowest.astype(np.float32))
            balanced = f"{source}_moved"
            nodes = [helper.make_node("Sub", [source, lowest], [balanced], f"{source}_move")]
        else:
            inverse = self._constant(f"{source}_inverse", (1 / factors).astype(np.float32))
            balanced = f"{source}_even"
            nodes = [helper.make_node("Mul", [source, inverse], [balanced], f"{source}_smooth")]
        count = pieces_of(len(factors))
        parts = [balanced] if count == 1 else [f"{balanced}_{index}" for index in range(count)]
        if count > 1:
            named: dict[str, Any] = {"num_outputs": count} if self._axes_are_inputs else {}
            nodes.append(
                helper.make_node("Split", [balanced], parts, f"{balanced}_split", axis=-1, **named)
            )
        pieces = []
        for part in parts:
            nodes += self._scaled(part, steps, zero)
            pieces.append((f"{part}_uint8", f"{part}_scale"))
        self._rounded[source] = (pieces, factors)
        return nodes

    def _scaled(self, part: str, steps: int, zero: int) -> list[onnx.NodeProto]:
        size, most, scale, unit, rounded = (
            f"{part}_{suffix}" for suffix in ("size", "most", "scale", "unit", "uint8")
        )
        step = [f"int8_per_row_step_{steps}", f"int8_per_row_zero_{zero}"]
        # A one-sided input is not below 0, except for values that the samples did not show.
        absolute = [helper.make_node("Abs", [part], [size], size)] if zero else []
        reduced = size if zero else part
        if self._axes_are_inputs:
            largest = helper.make_node("ReduceMax", [reduced, "int8_per_row_axis"], [most], most)
        else:
            largest = helper.make_node("ReduceMax", [reduced], [most], most, axes=[-1])
        return [
            *absolute,
            largest,
            helper.make_node("Max", [most, "int8_per_row_tiny"], [scale], scale),
            helper.make_node("Div", [part, scale], [unit], unit),
            helper.make_node("QuantizeLinear", [unit, *step], [rounded], rounded),
        ]

    def _smoothing(self, source: str) -> np.ndarray:
        """The divisor of each channel: FP64 [width], with a geometric mean of 1."""
        ranges = self._ranges[source]
        size = np.maximum(np.maximum(ranges.highest, -ranges.lowest), 1e-6)
        weights = np.concatenate([self.weights[name] for name in self._readers[source]], axis=1)
        heaviest = np.maximum(np.abs(weights).max(axis=1), 1e-6)
        factors = size**SMOOTHING / heaviest ** (1 - SMOOTHING)
        return np.asarray(factors / np.exp(np.log(factors).mean()))

    def _constant(self, name: str, values: "np.ndarray | np.generic") -> str:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name


def _opset(model: onnx.ModelProto) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=18)
