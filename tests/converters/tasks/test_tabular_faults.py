"""Faults planted in the graph of a tabular model: the proof names the row, the value and the
original."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from converters.conversion import prove_graph, reference_in
from converters.task import ConversionRequest
from converters.tasks.tabular.task import TabularClassification
from tests.tiny_tabular_models import customer_pipeline, customers, save


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A proved graph and its reference."""
    folder = tmp_path_factory.mktemp("built")
    path = save(customer_pipeline(), folder / "risk.skops", customers())
    task = TabularClassification(ConversionRequest("risk", str(path)))
    task.export(folder / "model.onnx")
    answers = task.model.scores(task.rows)
    np.savez(folder / "original.npz", **task.rows.arrays(), answers=answers)
    (folder / "metadata.json").write_text(json.dumps(task.metadata()))
    reference = reference_in(folder, "risk", task, "fp32")
    checks = task.prove_graph(folder / "model.onnx", reference)
    assert [check.line() for check in checks if not check.passed] == []
    return task, reference


def _node(graph, operator):
    return next(node for node in graph.node if node.op_type == operator)


def _swaps_labels(graph):
    names = next(tensor for tensor in graph.initializer if tensor.name.endswith("label_names"))
    names.string_data[:] = list(names.string_data)[::-1]


def _scales_scores(graph):
    _after_scores(graph, "Mul", np.float32(0.999))


def _after_scores(graph, operator, number):
    graph.initializer.append(numpy_helper.from_array(np.array(number), "number"))
    cast = next(node for node in graph.node if node.output[0] == "score")
    cast.output[0] = "true_score"
    graph.node.append(helper.make_node(operator, ["true_score", "number"], ["score"]))


def _ignores_a_column(graph):
    """Every row reads the ``plan`` of the batch's first row."""
    graph.initializer.append(numpy_helper.from_array(np.array([0]), "first_row"))
    reader = next(node for node in graph.node if list(node.input) == ["plan"])
    reader.input[0] = "plans"
    nodes = [
        helper.make_node("Gather", ["plan", "first_row"], ["one_plan"], axis=0),
        helper.make_node("Shape", ["plan"], ["plan_shape"]),
        helper.make_node("Expand", ["one_plan", "plan_shape"], ["plans"]),
    ]
    for index, node in enumerate(nodes):
        graph.node.insert(index, node)


def _forgets_what_is_missing(graph):
    where = next(n for n in graph.node if n.op_type == "Where" and "onstant" in n.input[1])
    where.op_type = "Identity"
    where.input[:] = [where.input[2]]


def _sorts_upside_down(graph):
    top = _node(graph, "TopK")
    top.attribute.append(helper.make_attribute("largest", 0))


FAULTS = {
    _swaps_labels: "parity: score: largest difference",
    _scales_scores: "parity: score: largest difference",
    _ignores_a_column: "batch invariance",
    _forgets_what_is_missing: "parity",
    _sorts_upside_down: "likeliest first",
}


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__.strip("_"))
def test_a_fault_in_the_built_graph_is_caught(built, tmp_path, spoil):
    task, reference = built
    model = onnx.load(reference.folder / "model.onnx")
    spoil(model.graph)
    onnx.save(model, tmp_path / "bad.onnx")
    failed = [
        check for check in task.prove_graph(tmp_path / "bad.onnx", reference) if not check.passed
    ]
    assert [check for check in failed if FAULTS[spoil] in check.name], failed
    matching_check = next(check for check in failed if FAULTS[spoil] in check.name)
    if "difference" in matching_check.name:
        assert "original" in matching_check.worst
        assert "row" in matching_check.worst or "threshold" in matching_check.worst


def test_a_graph_that_does_not_load_is_a_failed_check(built, tmp_path):
    task, reference = built
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x08no graph")
    (failed,) = prove_graph(task, tmp_path / "bad.onnx", reference).checks
    assert not failed.passed
    assert failed.worst
