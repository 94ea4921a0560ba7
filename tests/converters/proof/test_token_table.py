"""The token table of a graph is compared with the original's, also where no sample reads it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.proof.token_table import row_products, table_checks

ROWS, WIDTH = 500, 16
TABLE = np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32)


def _graph(path, table, *, between=()):
    nodes = [
        *between,
        helper.make_node("Gather", ["table", "ids" if between else "input_ids"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "length", WIDTH])],
        [numpy_helper.from_array(table, "table")],
    )
    onnx.save(helper.make_model(graph), path)
    return path


def _reversed_end(table):
    return np.concatenate([table[:-40], table[-40:][::-1]])


def _one_copied(table):
    table = table.copy()
    table[251] = table[250]
    return table


def _one_scaled(table):
    table = table.copy()
    table[17] *= 1.05
    return table


def _two_numbers_swapped(table):
    table = table.copy()
    table[499, [3, 4]] = table[499, [4, 3]]
    return table


FAULTS = {_reversed_end: (40, 460), _one_copied: (1, 251), _one_scaled: (1, 17),
          _two_numbers_swapped: (1, 499)}  # fmt: skip


def test_the_same_table_passes(tmp_path):
    products = row_products(TABLE)
    (check,) = table_checks(_graph(tmp_path / "m.onnx", TABLE), products)
    assert check.passed
    (check,) = table_checks(_graph(tmp_path / "h.onnx", TABLE.astype(np.float16)), products)
    assert check.passed, "FP16 rounds"
    cast = [helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT32)]
    (check,) = table_checks(_graph(tmp_path / "c.onnx", TABLE, between=cast), products)
    assert check.passed


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_wrong_row_is_found_and_named(tmp_path, fault, dtype):
    graph = _graph(tmp_path / "m.onnx", fault(TABLE).astype(dtype))
    (check,) = table_checks(graph, row_products(TABLE))
    count, first = FAULTS[fault]
    assert not check.passed
    assert (check.measured, check.worst) == (count, f"row {first}")


def test_a_graph_without_such_a_table_has_no_check(tmp_path):
    assert table_checks(_graph(tmp_path / "m.onnx", TABLE[:100]), row_products(TABLE)) == []
