"""Whether the token table of an exported graph is the original's, row by row.

Samples read a few hundred of a vocabulary's thousands of rows; whatever a fault does to the others,
no answer shows it. So the rows themselves are compared, each by one number: its product with a
fixed random vector, which two different rows do not share.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from converters.proof.checks import Check, at_most

TABLE = "token_table"  # the name of the products FP64 [rows] in a Reference's answers
NAME = "rows of the token table that are not the original's"
# How much of a row's length rounding may move its product: FP16 keeps 11 bits of each number, whose
# errors largely cancel out. FP32 is not rounded at all.
FP16_LIMIT, FP32_LIMIT = 2e-3, 1e-6
# Operators between ``input_ids`` and the table that leave ids as they are.
PASSING = ("Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze")


def row_products(table: np.ndarray) -> np.ndarray:
    """The product of each row of a table [rows, width] with a fixed vector: FP64 [rows]."""
    vector = np.random.default_rng(0).standard_normal(table.shape[1])
    return np.asarray(table.astype(np.float64) @ vector)


def table_checks(graph: Path, expected: np.ndarray) -> list[Check]:
    """The check of the table [rows, ...] from which ``graph`` reads the rows of ``input_ids``,
    against the ``row_products`` of the original's; none if it has no such table of this length."""
    tables = [table for table in _tables(onnx.load(graph).graph) if len(table) == len(expected)]
    if not tables:
        return []
    wrong: set[int] = set()
    for table in tables:
        lengths = np.linalg.norm(table.astype(np.float64), axis=1)
        limit = (FP16_LIMIT if table.dtype == np.float16 else FP32_LIMIT) * np.maximum(
            1e-30, lengths
        )
        # NaN compares false.
        is_same = np.abs(row_products(table) - expected) <= limit
        wrong |= set(np.flatnonzero(~is_same).tolist())
    return [at_most(NAME, len(wrong), 0, f"row {min(wrong)}" if wrong else "")]


def _tables(graph: onnx.GraphProto) -> Iterator[np.ndarray]:
    """The constants [rows, width] that are indexed by the graph's ``input_ids``."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    ids = {"input_ids"}
    for node in graph.node:
        if node.op_type in PASSING and node.input[0] in ids:
            ids.add(node.output[0])
        elif node.op_type == "Gather" and node.input[0] in constants and node.input[1] in ids:
            table = constants[node.input[0]]
            if len(table.dims) == 2:
                yield numpy_helper.to_array(table)
