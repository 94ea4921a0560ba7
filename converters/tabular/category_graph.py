"""Splits on categories: each set of them that a tree asks for becomes a number of its own.

The trees of ``trees2onnx`` compare numbers alone. So beside the columns stands, for each set, a
number that says on which side of that split a row is, read from a table by the category's code; the
split then compares it with 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.errors import SourceRefused
from converters.tabular.graph_names import ALL
from converters.tabular.table import MISSING, Column, Table

YES, NO = -1.0, 1.0
MOST_CELLS = 20_000_000
Step = tuple[str, tuple[str, ...], str, dict[str, Any]]
Codes = Mapping[int, Sequence[str] | Sequence[float]]


@dataclass
class CategorySplits:
    """The sets that the trees of a model with so many ``features`` ask for. ``inside``, ``missing``
    are the sides of a category in the set, and of a missing value (NaN: the split's own way);
    every other code is on the side opposite to ``inside``. ``floors``: a number between -1 and 0 is
    no code; else it is cut off to 0."""

    features: int
    inside: float
    missing: float
    floors: bool
    sets: dict[tuple[int, frozenset[int]], int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.sets)

    def feature(self, column: int, codes: Sequence[int]) -> int:
        """The number that says whether this column's code is among these."""
        key = column, frozenset(map(int, codes))
        return self.features + self.sets.setdefault(key, len(self.sets))

    def tables(self) -> dict[int, np.ndarray]:
        """For each column its sides FP64 [codes + 2, sets]: of each code, of an unknown one, of a
        missing one."""
        made = {}
        for column in sorted({column for column, _ in self.sets}):
            own = [codes for each, codes in self.sets if each == column]
            count = 1 + max((max(codes, default=0) for codes in own), default=0)
            if count * len(own) > MOST_CELLS:
                raise SourceRefused(
                    f"it splits column {column} on categories with numbers up to {count - 1}: "
                    "number them from 0 on, and train again"
                )
            sides = np.full((count + 2, len(own)), -self.inside)
            for place, codes in enumerate(own):
                sides[list(codes), place] = self.inside
            sides[count + 1] = self.missing
            made[column] = sides
        return made

    def order(self) -> list[int]:
        """Where each set's number is among the tables' columns, one table after another."""
        columns = sorted({column for column, _ in self.sets})
        listed = [key for column in columns for key in self.sets if key[0] == column]
        place = {key: index for index, key in enumerate(listed)}
        return [place[key] for key in self.sets]

    def numbers(self, coded: np.ndarray) -> np.ndarray:
        """``coded`` FP64 [n, features] with the sets' numbers behind them."""
        if not self.sets:
            return coded
        found = []
        for column, sides in self.tables().items():
            value, count = coded[:, column], len(sides) - 2
            cut = np.floor if self.floors else np.trunc
            code = cut(np.clip(np.nan_to_num(value, nan=-1.0), -1, count)).astype(np.int64)
            code = np.where(np.isnan(value), count + 1, np.where(code < 0, count, code))
            found.append(sides[code])
        return np.hstack([coded, np.hstack(found)[:, self.order()]])

    def nodes(self, source: str, target: str) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
        """The same in ONNX, from ``source`` to ``target``, and the constants that it reads."""
        nodes: list[onnx.NodeProto] = []
        own: list[str] = []
        held = {"category/less": np.array(-1.0), "category/zero": np.array(0, np.int64)}
        for column, sides in self.tables().items():
            at = f"category/{column}/"
            count = len(sides) - 2
            held |= {
                f"{at}place": np.array([column], np.int64),
                f"{at}most": np.array(float(count)),
                f"{at}unknown": np.array(count, np.int64),
                f"{at}gone": np.array(count + 1, np.int64),
                f"{at}sides": sides,
                f"{at}flat": np.array([-1, sides.shape[1]], np.int64),
            }
            steps: Sequence[Step] = (
                ("Gather", (source, f"{at}place"), "value", {"axis": 1}),
                ("IsNaN", (f"{at}value",), "is_nan", {}),
                ("Where", (f"{at}is_nan", "category/less", f"{at}value"), "safe", {}),
                ("Clip", (f"{at}safe", "category/less", f"{at}most"), "clipped", {}),
                ("Floor" if self.floors else "Identity", (f"{at}clipped",), "whole", {}),
                ("Cast", (f"{at}whole",), "code", {"to": TensorProto.INT64}),
                ("Less", (f"{at}code", "category/zero"), "negative", {}),
                ("Where", (f"{at}negative", f"{at}unknown", f"{at}code"), "known", {}),
                ("Where", (f"{at}is_nan", f"{at}gone", f"{at}known"), "row", {}),
                ("Gather", (f"{at}sides", f"{at}row"), "found", {"axis": 0}),
                ("Reshape", (f"{at}found", f"{at}flat"), "sets", {}),
            )
            nodes += [
                helper.make_node(operator, inputs, [f"{at}{output}"], **attributes)
                for operator, inputs, output, attributes in steps
            ]
            own.append(f"{at}sets")
        held["category/order"] = np.array(self.order(), np.int64)
        nodes += [
            helper.make_node("Concat", own, ["category/all"], axis=1),
            helper.make_node(
                "Gather", ["category/all", "category/order"], ["category/sets"], axis=1
            ),
            helper.make_node("Concat", [source, "category/sets"], [target], axis=1),
        ]
        return nodes, held


def coded(table: Table, columns: Sequence[Column], codes: Codes) -> np.ndarray:
    """The columns as the trees take them, FP64 [n, columns]: a category that ``codes`` names has
    its place there, -1 if it has none, and NaN if it is missing."""
    found = []
    for place, column in enumerate(columns):
        values = table.columns[column.name]
        if place not in codes:
            found.append(values.astype(np.float64))
            continue
        known = {each: float(index) for index, each in enumerate(codes[place])}
        gone = values == MISSING if column.is_text else np.isnan(values)
        numbers = np.array([known.get(each, -1.0) for each in values.tolist()])
        found.append(np.where(gone, np.nan, numbers))
    return np.stack(found, axis=1)


def category_frame(table: Table, columns: Sequence[Column], codes: Codes) -> Any:
    """The rows as a DataFrame whose columns in ``codes`` have pandas' type ``category``."""
    import pandas as pd

    held: dict[str, Any] = {}
    for place, column in enumerate(columns):
        values = table.columns[column.name]
        held[column.name] = values
        if place in codes:
            known = set(codes[place])
            kept = [each if each in known else None for each in values.tolist()]
            held[column.name] = pd.Categorical(kept, categories=list(codes[place]))
    return pd.DataFrame(held)


def with_coded_inputs(
    inner: onnx.ModelProto, columns: Sequence[Column], codes: Codes
) -> onnx.ModelProto:
    """``inner``, which takes ``ALL``, with an input [n, 1] for each column: what ``coded`` does."""
    graph, inputs, read = inner.graph, [], []
    nodes: list[onnx.NodeProto] = []
    held: dict[str, np.ndarray] = {}
    for place, column in enumerate(columns):
        name, at = f"column{place}", f"coded/{place}/"
        kind = TensorProto.STRING if column.is_text else TensorProto.DOUBLE
        inputs.append(helper.make_tensor_value_info(name, kind, [None, 1]))
        if place not in codes:
            read.append(name)
            continue
        read.append(f"{at}code")
        if column.is_text:
            keys = [*map(str, codes[place]), MISSING]
            numbers = [*map(float, range(len(keys) - 1)), float("nan")]
            nodes += [
                helper.make_node(
                    "LabelEncoder",
                    [name],
                    [f"{at}narrow"],
                    domain="ai.onnx.ml",
                    keys_strings=keys,
                    values_floats=numbers,
                    default_float=-1.0,
                ),
                helper.make_node("Cast", [f"{at}narrow"], [f"{at}code"], to=TensorProto.DOUBLE),
            ]
            continue
        # 1 and on for what is known, less 1: so -1 for what is not.
        held |= {
            f"{at}known": np.array([codes[place]], np.float64),
            f"{at}numbers": np.arange(1.0, len(codes[place]) + 1)[None],
            f"{at}axes": np.array([1], np.int64),
            f"{at}one": np.array(1.0),
            f"{at}nan": np.array(np.nan),
        }
        steps: Sequence[Step] = (
            ("Equal", (name, f"{at}known"), "same", {}),
            ("Cast", (f"{at}same",), "ones", {"to": TensorProto.DOUBLE}),
            ("Mul", (f"{at}ones", f"{at}numbers"), "weighed", {}),
            ("ReduceSum", (f"{at}weighed", f"{at}axes"), "sum", {"keepdims": 1}),
            ("Sub", (f"{at}sum", f"{at}one"), "found", {}),
            ("IsNaN", (name,), "is_nan", {}),
            ("Where", (f"{at}is_nan", f"{at}nan", f"{at}found"), "code", {}),
        )
        nodes += [
            helper.make_node(operator, names, [f"{at}{output}"], **attributes)
            for operator, names, output, attributes in steps
        ]
    nodes.append(helper.make_node("Concat", read, [ALL], axis=1))
    made = helper.make_graph(
        [*nodes, *graph.node],
        "trees of categories",
        inputs,
        list(graph.output),
        [*graph.initializer, *(numpy_helper.from_array(v, k) for k, v in held.items())],
    )
    return helper.make_model(
        made, opset_imports=list(inner.opset_import), ir_version=inner.ir_version
    )
