"""A sum of trees as ONNX nodes: rounding, trees, start, link."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.tabular.trees2onnx import ML_DOMAIN, Tree, tree_attributes


@dataclass(frozen=True)
class Part:
    """One node to be: ``constants`` are named arrays that it reads beside ``inputs``."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]
    domain: str = ""


@dataclass(frozen=True)
class TreeParts:
    """Nodes and constants that turn numbers [n, features] into an answer FP64 [n, width]."""

    parts: tuple[Part, ...]
    constants: dict[str, np.ndarray]

    def nodes(self) -> list[onnx.NodeProto]:
        """As ONNX."""
        return [
            helper.make_node(p.operator, p.inputs, [p.output], domain=p.domain, **p.attributes)
            for p in self.parts
        ]

    def initializers(self) -> list[onnx.TensorProto]:
        """As ONNX."""
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

    ``narrow`` rounds to FP32 first, as the library does; ``missing`` are then read as NaN. A
    link of one column of raw scores to two of probabilities is ``sigmoid``.
    """
    numbers, constants = _numbers(source, missing, narrow=narrow)
    total = Part(
        "TreeEnsembleRegressor",
        (numbers[-1].output,),
        f"{source}_sum",
        tree_attributes(trees, len(start)),
        ML_DOMAIN,
    )
    wide = Part("Cast", (total.output,), f"{source}_sum64", {"to": TensorProto.DOUBLE})
    linked, more = _started(source, wide.output, start, link)
    return TreeParts((*numbers, total, wide, *linked), constants | more)


def linear_parts(
    weights: np.ndarray, start: np.ndarray, link: str, *, source: str, missing: Sequence[float] = ()
) -> TreeParts:
    """``link(start + source @ weights)``, NaN and ``missing`` counting as 0, numbers rounded to
    FP32 first: from ``source`` of any float type to ``{source}_answer`` FP64."""
    numbers, constants = _numbers(source, missing, narrow=True)
    read = numbers[-1].output
    gone, zero, kept = f"{source}_gone", f"{source}_zero", f"{source}_kept"
    parts = [
        Part("IsNaN", (read,), gone, {}),
        Part("Where", (gone, zero, read), kept, {}),
        Part("MatMul", (kept, f"{source}_weights"), f"{source}_sum64", {}),
    ]
    constants |= {zero: np.array(0.0), f"{source}_weights": weights}
    linked, more = _started(source, f"{source}_sum64", start, link)
    return TreeParts((*numbers, *parts, *linked), constants | more)


def _numbers(
    source: str, missing: Sequence[float], *, narrow: bool
) -> tuple[list[Part], dict[str, np.ndarray]]:
    """The numbers as FP64, as the library reads them."""
    rounded, wide, names = f"{source}_rounded", f"{source}_wide", []
    if narrow:
        names.append(Part("Cast", (source,), rounded, {"to": TensorProto.FLOAT}))
    first = rounded if narrow else source
    names.append(Part("Cast", (first,), wide, {"to": TensorProto.DOUBLE}))
    nan = f"{source}_nan"
    constants: dict[str, np.ndarray] = {}
    for place, number in enumerate(missing):
        is_mark, mark, read = (f"{source}_{part}{place}" for part in ("is_mark", "mark", "read"))
        names.append(Part("Equal", (names[-1].output, mark), is_mark, {}))
        names.append(Part("Where", (is_mark, nan, names[-2].output), read, {}))
        constants |= {mark: np.array(number, np.float64), nan: np.array(np.nan)}
    return names, constants


def _started(
    source: str, total: str, start: np.ndarray, link: str
) -> tuple[list[Part], dict[str, np.ndarray]]:
    raw, begin = f"{source}_raw", f"{source}_start"
    linked, more = _linked(link, raw, f"{source}_answer")
    constants = {begin: start.astype(np.float64)[None]} | more
    return [Part("Add", (total, begin), raw, {}), *linked], constants


def _linked(link: str, raw: str, answer: str) -> tuple[list[Part], dict[str, np.ndarray]]:
    match link:
        case "identity":
            return [Part("Identity", (raw,), answer, {})], {}
        case "exp":
            return [Part("Exp", (raw,), answer, {})], {}
        case "minus exp":
            power = Part("Exp", (raw,), f"{raw}_power", {})
            return [power, Part("Neg", (power.output,), answer, {})], {}
        case "softmax":
            return [Part("Softmax", (raw,), answer, {"axis": 1})], {}
        case "sigmoid one" | "sigmoid each":
            return [Part("Sigmoid", (raw,), answer, {})], {}
        case "hinge" | "hinge one":
            return _steps(raw, answer, both=link == "hinge")
        case "sigmoid" | "sigmoid of twice":
            factor = 2.0 if link == "sigmoid of twice" else 1.0
            return _two_classes(raw, answer, factor)
    raise ValueError(f"there is no link {link!r}")


def _two_classes(raw: str, answer: str, factor: float) -> tuple[list[Part], dict[str, np.ndarray]]:
    """[n, 1] raw -> [n, 2]: the probability of the first class and of the second."""
    both = Part("Mul", (raw, f"{raw}_signs"), f"{raw}_both", {})
    signs = np.array([[-factor, factor]])
    return [both, Part("Sigmoid", (f"{raw}_both",), answer, {})], {f"{raw}_signs": signs}


def _steps(raw: str, answer: str, *, both: bool) -> tuple[list[Part], dict[str, np.ndarray]]:
    """[n, 1] raw -> 1 where it is above 0; with ``both`` [n, 2]: the first class, the second."""
    over = Part("Greater", (raw, f"{raw}_zero"), f"{raw}_over", {})
    constants = {f"{raw}_zero": np.array(0.0)}
    if not both:
        return [over, Part("Cast", (over.output,), answer, {"to": TensorProto.DOUBLE})], constants
    second = Part("Cast", (over.output,), f"{raw}_second", {"to": TensorProto.DOUBLE})
    first = Part("Sub", (f"{raw}_one", second.output), f"{raw}_first", {})
    joined = Part("Concat", (first.output, second.output), answer, {"axis": 1})
    return [over, second, first, joined], constants | {f"{raw}_one": np.array(1.0)}
