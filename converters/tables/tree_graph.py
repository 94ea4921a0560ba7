"""A sum of trees as ONNX nodes: rounding, trees, start, link."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.tables.trees2onnx import ML_DOMAIN, Tree, tree_attributes


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
    trees: Sequence[Tree], start: np.ndarray, link: str, *, narrow: bool, source: str
) -> TreeParts:
    """``link(start + sum)``, from ``source`` of any float type to ``{source}_answer`` FP64.

    ``narrow`` rounds to FP32 first, as the library does. A link of one column of raw scores to two
    of probabilities is ``sigmoid``.
    """
    names = {key: f"{source}_{key}" for key in ("rounded", "wide", "sum", "sum64", "raw", "answer")}
    rounded = Part("Cast", (source,), names["rounded"], {"to": TensorProto.FLOAT})
    first = names["rounded"] if narrow else source
    parts = [
        *([rounded] if narrow else []),
        Part("Cast", (first,), names["wide"], {"to": TensorProto.DOUBLE}),
        Part(
            "TreeEnsembleRegressor",
            (names["wide"],),
            names["sum"],
            tree_attributes(trees, len(start)),
            ML_DOMAIN,
        ),
        Part("Cast", (names["sum"],), names["sum64"], {"to": TensorProto.DOUBLE}),
        Part("Add", (names["sum64"], f"{source}_start"), names["raw"], {}),
    ]
    constants = {f"{source}_start": start.astype(np.float64)[None]}
    linked, more = _linked(link, names["raw"], names["answer"])
    return TreeParts((*parts, *linked), constants | more)


def _linked(link: str, raw: str, answer: str) -> tuple[list[Part], dict[str, np.ndarray]]:
    match link:
        case "identity":
            return [Part("Identity", (raw,), answer, {})], {}
        case "exp":
            return [Part("Exp", (raw,), answer, {})], {}
        case "softmax":
            return [Part("Softmax", (raw,), answer, {"axis": 1})], {}
        case "sigmoid one":
            return [Part("Sigmoid", (raw,), answer, {})], {}
        case "sigmoid" | "sigmoid of twice":
            factor = 2.0 if link == "sigmoid of twice" else 1.0
            return _two_classes(raw, answer, factor)
    raise ValueError(f"there is no link {link!r}")


def _two_classes(raw: str, answer: str, factor: float) -> tuple[list[Part], dict[str, np.ndarray]]:
    """[n, 1] raw -> [n, 2]: the probability of the first class and of the second."""
    both = Part("Mul", (raw, f"{raw}_signs"), f"{raw}_both", {})
    signs = np.array([[-factor, factor]])
    return [both, Part("Sigmoid", (f"{raw}_both",), answer, {})], {f"{raw}_signs": signs}
