"""Splits on categories: each set of categories that a tree tests becomes a number of its own.

The trees of ``trees2onnx`` only compare numbers. So the columns are followed by one number for each
set, which says on which side of that split a row is, read from a table by the category's code; the
split then compares it with 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.errors import SourceRefused
from converters.export.graph_names import ALL
from converters.table import MISSING, Column, Table

YES, NO = -1.0, 1.0
MAX_CELLS = 20_000_000
Step = tuple[str, tuple[str, ...], str, dict[str, Any]]
Codes = Mapping[int, Sequence[str] | Sequence[float]]


@dataclass
class CategorySplits:
    """The sets that the trees of a model with ``features`` features test. ``inside`` is the side of
    a category in the set, ``missing`` that of a missing value (NaN: the split's own default); every
    other code is on the side opposite to ``inside``. ``floors``: a number between -1 and 0 is not a
    code; else it is truncated to 0."""

    features: int
    inside: float
    missing: float
    floors: bool
    sets: dict[tuple[int, frozenset[int]], int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.sets)

    def feature(self, column: int, codes: Sequence[int]) -> int:
        """The index of the number that says whether this column's code is among ``codes``."""
        key = column, frozenset(map(int, codes))
        return self.features + self.sets.setdefault(key, len(self.sets))

    def tables(self) -> dict[int, np.ndarray]:
        """For each column its sides FP64 [codes + 2, sets]: for each code, for an unknown one, for
        a missing one."""
        tables = {}
        for column in sorted({column for column, _ in self.sets}):
            column_sets = [codes for split_column, codes in self.sets if split_column == column]
            count = 1 + max((max(codes, default=0) for codes in column_sets), default=0)
            if count * len(column_sets) > MAX_CELLS:
                raise SourceRefused(
                    f"it splits column {column} on categories with numbers up to {count - 1}: "
                    "number them from 0, and train again"
                )
            sides = np.full((count + 2, len(column_sets)), -self.inside)
            for index, codes in enumerate(column_sets):
                sides[list(codes), index] = self.inside
            sides[count + 1] = self.missing
            tables[column] = sides
        return tables

    def order(self) -> list[int]:
        """For each set, the index of its number in the tables' columns, one table after another."""
        columns = sorted({column for column, _ in self.sets})
        keys = [key for column in columns for key in self.sets if key[0] == column]
        index_of = {key: index for index, key in enumerate(keys)}
        return [index_of[key] for key in self.sets]

    def numbers(self, coded: np.ndarray) -> np.ndarray:
        """``coded`` FP64 [n, features] with the sets' numbers appended."""
        if not self.sets:
            return coded
        blocks = []
        for column, sides in self.tables().items():
            value, count = coded[:, column], len(sides) - 2
            to_integer = np.floor if self.floors else np.trunc
            code = to_integer(np.clip(np.nan_to_num(value, nan=-1.0), -1, count)).astype(np.int64)
            code = np.where(np.isnan(value), count + 1, np.where(code < 0, count, code))
            blocks.append(sides[code])
        return np.hstack([coded, np.hstack(blocks)[:, self.order()]])

    def nodes(self, source: str, target: str) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
        """``numbers`` in ONNX, from ``source`` to ``target``, and the constants that the nodes
        read."""
        nodes: list[onnx.NodeProto] = []
        blocks: list[str] = []
        constants = {"category/less": np.array(-1.0), "category/zero": np.array(0, np.int64)}
        for column, sides in self.tables().items():
            prefix = f"category/{column}/"
            count = len(sides) - 2
            constants |= {
                f"{prefix}index": np.array([column], np.int64),
                f"{prefix}limit": np.array(float(count)),
                f"{prefix}unknown": np.array(count, np.int64),
                f"{prefix}missing": np.array(count + 1, np.int64),
                f"{prefix}sides": sides,
                f"{prefix}flat": np.array([-1, sides.shape[1]], np.int64),
            }
            steps: Sequence[Step] = (
                ("Gather", (source, f"{prefix}index"), "value", {"axis": 1}),
                ("IsNaN", (f"{prefix}value",), "is_nan", {}),
                ("Where", (f"{prefix}is_nan", "category/less", f"{prefix}value"), "safe", {}),
                ("Clip", (f"{prefix}safe", "category/less", f"{prefix}limit"), "clipped", {}),
                ("Floor" if self.floors else "Identity", (f"{prefix}clipped",), "whole", {}),
                ("Cast", (f"{prefix}whole",), "code", {"to": TensorProto.INT64}),
                ("Less", (f"{prefix}code", "category/zero"), "negative", {}),
                ("Where", (f"{prefix}negative", f"{prefix}unknown", f"{prefix}code"), "known", {}),
                ("Where", (f"{prefix}is_nan", f"{prefix}missing", f"{prefix}known"), "row", {}),
                ("Gather", (f"{prefix}sides", f"{prefix}row"), "row_sides", {"axis": 0}),
                ("Reshape", (f"{prefix}row_sides", f"{prefix}flat"), "sets", {}),
            )
            nodes += [
                helper.make_node(operator, inputs, [f"{prefix}{output}"], **attributes)
                for operator, inputs, output, attributes in steps
            ]
            blocks.append(f"{prefix}sets")
        constants["category/order"] = np.array(self.order(), np.int64)
        nodes += [
            helper.make_node("Concat", blocks, ["category/all"], axis=1),
            helper.make_node(
                "Gather", ["category/all", "category/order"], ["category/sets"], axis=1
            ),
            helper.make_node("Concat", [source, "category/sets"], [target], axis=1),
        ]
        return nodes, constants


def coded(table: Table, columns: Sequence[Column], codes: Codes) -> np.ndarray:
    """The columns as the trees take them, FP64 [n, columns]: a category in ``codes`` becomes its
    index there, -1 if it is unknown, and NaN if it is missing."""
    coded_columns = []
    for index, column in enumerate(columns):
        values = table.columns[column.name]
        if index not in codes:
            coded_columns.append(values.astype(np.float64))
            continue
        code_of = {category: float(code) for code, category in enumerate(codes[index])}
        missing = values == MISSING if column.is_text else np.isnan(values)
        numbers = np.array([code_of.get(value, -1.0) for value in values.tolist()])
        coded_columns.append(np.where(missing, np.nan, numbers))
    return np.stack(coded_columns, axis=1)


def category_frame(table: Table, columns: Sequence[Column], codes: Codes) -> Any:
    """The rows as a DataFrame in which the columns in ``codes`` have pandas' type ``category``."""
    import pandas as pd

    frame: dict[str, object] = {}
    for index, column in enumerate(columns):
        values = table.columns[column.name]
        frame[column.name] = values
        if index in codes:
            known = set(codes[index])
            categories = [value if value in known else None for value in values.tolist()]
            frame[column.name] = pd.Categorical(categories, categories=list(codes[index]))
    return pd.DataFrame(frame)


def with_coded_inputs(
    inner: onnx.ModelProto, columns: Sequence[Column], codes: Codes
) -> onnx.ModelProto:
    """``inner``, whose input is ``ALL``, with an input [n, 1] for each column instead: the graph of
    ``coded``."""
    graph, inputs, code_tensors = inner.graph, [], []
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    for index, column in enumerate(columns):
        name, prefix = f"column{index}", f"coded/{index}/"
        dtype = TensorProto.STRING if column.is_text else TensorProto.DOUBLE
        inputs.append(helper.make_tensor_value_info(name, dtype, [None, 1]))
        if index not in codes:
            code_tensors.append(name)
            continue
        code_tensors.append(f"{prefix}code")
        if column.is_text:
            keys = [*map(str, codes[index]), MISSING]
            numbers = [*map(float, range(len(keys) - 1)), float("nan")]
            nodes += [
                helper.make_node(
                    "LabelEncoder",
                    [name],
                    [f"{prefix}narrow"],
                    domain="ai.onnx.ml",
                    keys_strings=keys,
                    values_floats=numbers,
                    default_float=-1.0,
                ),
                helper.make_node(
                    "Cast", [f"{prefix}narrow"], [f"{prefix}code"], to=TensorProto.DOUBLE
                ),
            ]
            continue
        # 1, 2, ... for a known number and 0 for another, less 1.
        constants |= {
            f"{prefix}known": np.array([codes[index]], np.float64),
            f"{prefix}numbers": np.arange(1.0, len(codes[index]) + 1)[None],
            f"{prefix}axes": np.array([1], np.int64),
            f"{prefix}one": np.array(1.0),
            f"{prefix}nan": np.array(np.nan),
        }
        steps: Sequence[Step] = (
            ("Equal", (name, f"{prefix}known"), "same", {}),
            ("Cast", (f"{prefix}same",), "ones", {"to": TensorProto.DOUBLE}),
            ("Mul", (f"{prefix}ones", f"{prefix}numbers"), "weighed", {}),
            ("ReduceSum", (f"{prefix}weighed", f"{prefix}axes"), "sum", {"keepdims": 1}),
            ("Sub", (f"{prefix}sum", f"{prefix}one"), "known_code", {}),
            ("IsNaN", (name,), "is_nan", {}),
            ("Where", (f"{prefix}is_nan", f"{prefix}nan", f"{prefix}known_code"), "code", {}),
        )
        nodes += [
            helper.make_node(operator, names, [f"{prefix}{output}"], **attributes)
            for operator, names, output, attributes in steps
        ]
    nodes.append(helper.make_node("Concat", code_tensors, [ALL], axis=1))
    coded_graph = helper.make_graph(
        [*nodes, *graph.node],
        "trees of categories",
        inputs,
        list(graph.output),
        [*graph.initializer, *(numpy_helper.from_array(v, k) for k, v in constants.items())],
    )
    return helper.make_model(
        coded_graph, opset_imports=list(inner.opset_import), ir_version=inner.ir_version
    )
