"""The proof of an image graph catches the faults that are planted in it."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from converters.tasks.image_classification.checks import Graph, graph_checks, image_names
from converters.tasks.image_classification.efficientnet import known_photos
from tests.converters.tasks.image_in_process import SHOWN, few_converted


@pytest.fixture(scope="module")
def converted():
    return few_converted()


@pytest.fixture(scope="module")
def reference(converted):
    return converted.reference


def _failed(checks):
    return {check.name for check in checks if not check.passed}


def test_the_real_graph_passes(converted, reference):
    assert image_names(reference) == sorted(SHOWN, key=image_names(reference).index)
    assert not _failed(graph_checks(Graph(converted.engine), reference))
    assert converted.record.passed


def _tampered(converted, target, change) -> Graph:
    model = onnx.load(converted.engine)
    change(model.graph)
    onnx.save(model, target)
    return Graph(target)


def _last_weight(graph):
    """The classifier's own: a normalisation may undo the scaling of an earlier one."""
    feeding = next(node for node in graph.node if "logits" in node.output)
    return next(tensor for tensor in graph.initializer if tensor.name == feeding.input[1])


def _scale_a_weight(graph):
    weight = _last_weight(graph)
    scaled = numpy_helper.to_array(weight) * np.float32(1.002)
    weight.CopyFrom(numpy_helper.from_array(scaled, weight.name))


def _nothing_is_a_number(graph):
    weight = _last_weight(graph)
    broken = numpy_helper.to_array(weight) * np.float32(np.nan)
    weight.CopyFrom(numpy_helper.from_array(broken, weight.name))


def _rename_logits(graph):
    for node in graph.node:
        for index, name in enumerate(node.output):
            if name == "logits":
                node.output[index] = "own"


def _look_at_the_batch(graph):
    """The highest logits of the batch: right only for an image that is alone."""
    _rename_logits(graph)
    axes = numpy_helper.from_array(np.array([0], dtype=np.int64), "batch_axis")
    graph.initializer.append(axes)
    for node in (
        onnx.helper.make_node("ReduceMax", ["own", "batch_axis"], ["most"], keepdims=1),
        onnx.helper.make_node("Max", ["own", "most"], ["logits"]),
    ):
        graph.node.append(node)


def _answer_one(graph):
    """A baked batch axis: as many rows as the example had images."""
    _rename_logits(graph)
    shape = numpy_helper.from_array(np.array([1, 1000], dtype=np.int64), "one_row")
    graph.initializer.append(shape)
    graph.node.append(onnx.helper.make_node("Reshape", ["own", "one_row"], ["logits"]))


LOGITS = "parity: largest difference of a logit"


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (_scale_a_weight, LOGITS),
        (_nothing_is_a_number, "extreme images: answers that are not finite"),
        (_look_at_the_batch, "batch invariance"),
        (_look_at_the_batch, "batch of 2"),
        (_answer_one, "batch of 3"),
    ],
)
def test_a_fault_in_the_graph_is_caught(converted, reference, tmp_path, change, check):
    graph = _tampered(converted, tmp_path / "model.onnx", change)
    checks = graph_checks(graph, reference)
    assert check in _failed(checks)
    named = [result for result in checks if not result.passed and result.name in (LOGITS, check)]
    assert all(result.worst for result in named)


def test_a_graph_that_cannot_run_at_all_fails(reference):
    def broken(pixels):
        raise RuntimeError("no such operator")

    checks = graph_checks(broken, reference)
    assert [(check.passed, check.worst) for check in checks] == [(False, "no such operator")]


def test_an_engine_that_is_not_a_graph_fails(converted, reference, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    checks = converted.task.prove_graph(tmp_path / "model.onnx", reference)
    assert not checks[0].passed
    assert "INVALID_PROTOBUF" in checks[0].worst or "protobuf" in checks[0].worst


def test_labels_out_of_order_are_caught(reference):
    known = {"coffee-rgb": {"espresso"}}
    arguments = reference.outputs["logits"], image_names(reference)
    labels = reference.metadata["labels"]
    assert known_photos(*arguments, labels, known).passed
    check = known_photos(*arguments, labels[1:] + labels[:1], known)
    assert not check.passed
    assert "coffee-rgb is called" in check.worst
