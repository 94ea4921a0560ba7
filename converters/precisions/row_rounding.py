"""A product of rows and constant weights, written with the rows rounded to 8 bits: the operators of
``rows8``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.precisions.unsigned import CENTRE

SMOOTHING = 0.65  # between 0 (all in the activations) and 1 (all in the weights)
ONE_SIDED = 0.25  # the lowest is nearer to 0 than the highest, by this
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


def pieces_of(width: int) -> int:
    """How many pieces a row of this width is rounded in, each by a range of its own."""
    return next((n for n in range(PIECES, 1, -1) if width % n == 0 and width // n >= PIECE), 1)


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
        self._constant("rows8_centre", np.uint8(CENTRE))
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
            made += self._product(source, part, piece, (rounded + CENTRE).astype(np.uint8), column)
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
            self._constant(f"{part}_weights", weights),
            f"rows8_step_{steps}",
            self._constant(f"{part}_columns", column.astype(np.float32)),
            f"rows8_zero_{zero}",
            "rows8_centre",
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
