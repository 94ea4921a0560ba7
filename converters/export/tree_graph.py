"""A sum of trees as ONNX nodes: rounding, trees, start, link."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.export.trees2onnx import ML_DOMAIN, Tree, tree_attributes


@dataclass(frozen=True)
class NodeSpec:
    """A future node: ``inputs`` may name tensors or the constants of its ``TreeParts``."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]
    domain: str = ""


@dataclass(frozen=True)
class TreeParts:
    """Nodes and constants that compute an output FP64 [n, width] from numbers [n, features]."""

    parts: tuple[NodeSpec, ...]
    constants: dict[str, np.ndarray]

    def nodes(self) -> list[onnx.NodeProto]:
        """The parts as ONNX nodes."""
        return [
            helper.make_node(
                part.operator, part.inputs, [part.output], domain=part.domain, **part.attributes
            )
            for part in self.parts
        ]

    def initializers(self) -> list[onnx.TensorProto]:
        """The constants as ONNX initializers."""
        return [numpy_helper.from_array(value, name) for name, value in self.constants.items()]


def tree_parts(
    trees: Sequence[Tree],
    start: np.ndarray,
    link: str,
    *,
    narrow: bool,
    source: str,
    missing: Sequence[float] = (),
) -> TreeParts:
    """``link(start + sum)``, from ``source`` of any float type to ``{source}_answer`` FP64.

    ``narrow`` first rounds to FP32, as the library does; the numbers in ``missing`` are then read
    as NaN. The link ``sigmoid`` turns one column of raw scores into two of probabilities.
    """
    numbers, constants = _numbers(source, missing, narrow=narrow)
    total = NodeSpec(
        "TreeEnsembleRegressor",
        (numbers[-1].output,),
        f"{source}_sum",
        tree_attributes(trees, len(start)),
        ML_DOMAIN,
    )
    wide = NodeSpec("Cast", (total.output,), f"{source}_sum64", {"to": TensorProto.DOUBLE})
    linked, link_constants = _add_start(source, wide.output, start, link)
    return TreeParts((*numbers, total, wide, *linked), constants | link_constants)


def linear_parts(
    weights: np.ndarray, start: np.ndarray, link: str, *, source: str, missing: Sequence[float] = ()
) -> TreeParts:
    """``link(start + source @ weights)``, with numbers first rounded to FP32 and NaN and
    ``missing`` counting as 0: from ``source`` of any float type to ``{source}_answer`` FP64."""
    numbers, constants = _numbers(source, missing, narrow=True)
    number = numbers[-1].output
    is_nan, zero, filled = f"{source}_is_nan", f"{source}_zero", f"{source}_filled"
    parts = [
        NodeSpec("IsNaN", (number,), is_nan, {}),
        NodeSpec("Where", (is_nan, zero, number), filled, {}),
        NodeSpec("MatMul", (filled, f"{source}_weights"), f"{source}_sum64", {}),
    ]
    constants |= {zero: np.array(0.0), f"{source}_weights": weights}
    linked, link_constants = _add_start(source, f"{source}_sum64", start, link)
    return TreeParts((*numbers, *parts, *linked), constants | link_constants)


def _numbers(
    source: str, missing: Sequence[float], *, narrow: bool
) -> tuple[list[NodeSpec], dict[str, np.ndarray]]:
    """The numbers in FP64 as the library reads them."""
    rounded, wide, parts = f"{source}_rounded", f"{source}_wide", []
    if narrow:
        parts.append(NodeSpec("Cast", (source,), rounded, {"to": TensorProto.FLOAT}))
    first = rounded if narrow else source
    parts.append(NodeSpec("Cast", (first,), wide, {"to": TensorProto.DOUBLE}))
    nan = f"{source}_nan"
    constants: dict[str, np.ndarray] = {}
    for index, number in enumerate(missing):
        is_mark, mark, read = (
            f"{source}_{suffix}{index}" for suffix in ("is_mark", "mark", "read")
        )
        parts.append(NodeSpec("Equal", (parts[-1].output, mark), is_mark, {}))
        parts.append(NodeSpec("Where", (is_mark, nan, parts[-2].output), read, {}))
        constants |= {mark: np.array(number, np.float64), nan: np.array(np.nan)}
    return parts, constants


def _add_start(
    source: str, total: str, start: np.ndarray, link: str
) -> tuple[list[NodeSpec], dict[str, np.ndarray]]:
    raw, start_name = f"{source}_raw", f"{source}_start"
    linked, link_constants = _linked(link, raw, f"{source}_answer")
    constants = {start_name: start.astype(np.float64)[None]} | link_constants
    return [NodeSpec("Add", (total, start_name), raw, {}), *linked], constants


def _linked(link: str, raw: str, output: str) -> tuple[list[NodeSpec], dict[str, np.ndarray]]:
    match link:
        case "identity":
            return [NodeSpec("Identity", (raw,), output, {})], {}
        case "exp":
            return [NodeSpec("Exp", (raw,), output, {})], {}
        case "minus exp":
            power = NodeSpec("Exp", (raw,), f"{raw}_power", {})
            return [power, NodeSpec("Neg", (power.output,), output, {})], {}
        case "softmax":
            return [NodeSpec("Softmax", (raw,), output, {"axis": 1})], {}
        case "sigmoid one" | "sigmoid each":
            return [NodeSpec("Sigmoid", (raw,), output, {})], {}
        case "hinge" | "hinge one":
            return _hinge(raw, output, both=link == "hinge")
        case "sigmoid" | "sigmoid of twice":
            factor = 2.0 if link == "sigmoid of twice" else 1.0
            return _two_classes(raw, output, factor)
    raise ValueError(f"there is no link {link!r}")


def _two_classes(
    raw: str, output: str, factor: float
) -> tuple[list[NodeSpec], dict[str, np.ndarray]]:
    """[n, 1] raw -> [n, 2]: the probabilities of the first and of the second class."""
    both = NodeSpec("Mul", (raw, f"{raw}_signs"), f"{raw}_both", {})
    signs = np.array([[-factor, factor]])
    return [both, NodeSpec("Sigmoid", (f"{raw}_both",), output, {})], {f"{raw}_signs": signs}


def _hinge(raw: str, output: str, *, both: bool) -> tuple[list[NodeSpec], dict[str, np.ndarray]]:
    """[n, 1] raw -> 1 where it is above 0; with ``both`` [n, 2]: the first class, the second."""
    over = NodeSpec("Greater", (raw, f"{raw}_zero"), f"{raw}_over", {})
    constants = {f"{raw}_zero": np.array(0.0)}
    if not both:
        return [
            over,
            NodeSpec("Cast", (over.output,), output, {"to": TensorProto.DOUBLE}),
        ], constants
    second = NodeSpec("Cast", (over.output,), f"{raw}_second", {"to": TensorProto.DOUBLE})
    first = NodeSpec("Sub", (f"{raw}_one", second.output), f"{raw}_first", {})
    joined = NodeSpec("Concat", (first.output, second.output), output, {"axis": 1})
    return [over, second, first, joined], constants | {f"{raw}_one": np.array(1.0)}
