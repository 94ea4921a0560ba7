"""``tidegate prove`` finds changes to a published pipeline, in its steps or its graph."""

import json
import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from converters.conversion import ask_original, prove_graph, reference_in
from converters.task import ConversionRequest
from serving.repository.model_repository import ModelRepository
from tests.command_line import tidegate
from tests.tiny_models import save_classifier
from tidegate.app.convert import ConvertOptions, run
from tidegate.app.paths import Paths
from tidegate.app.published import copy_pipeline
from tidegate.app.scratch import proved_through_triton
from tidegate.app.task_registry import TASKS


def _ignore_progress(text: str) -> None:
    """Ignore progress messages."""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A home with the pipeline ``mood``, its task and the reference of its original."""
    home = tmp_path_factory.mktemp("published")
    source = save_classifier("bert", home / "bert")
    run(ConvertOptions(str(source), "text-classification", "mood"), Paths(home), _ignore_progress)
    task = TASKS["text-classification"].open_task(ConversionRequest("mood", str(source)))
    answers = home / "asked"
    answers.mkdir()
    ask_original(task, answers, _ignore_progress)
    return home, task, reference_in(answers, "mood", task, "fp32")


def _replace(path, old, new):
    text = path.read_text()
    assert old in text, f"the fault cannot be planted: {path} has no {old!r}"
    path.write_text(text.replace(old, new))


FAULTS = {
    "the padding is not masked": (
        "mood_pre/1/model.py",
        "mask = (np.arange(length) < count[:, None])",
        "mask = (np.arange(length) < length + 0 * count[:, None])",
    ),
    "the longest text loses a token": (
        "mood_pre/1/model.py",
        "ids[index, : len(row.ids)] = row.ids",
        "ids[index, : len(row.ids)] = [*row.ids[:-2], *row.ids[-1:] * 2][: len(row.ids)]"
        " if len(row.ids) > 48 else row.ids",
    ),
    "only ASCII is read": (
        "mood_pre/1/model.py",
        'decoded = text.decode("utf-8")',
        'decoded = text.decode("utf-8").encode("ascii", "replace").decode()',
    ),
    "a batch is answered in another order": (
        "mood_post/1/model.py",
        "scores = self._scores(logits)",
        "scores = self._scores(logits[::-1])",
    ),
    "two labels are swapped": ("mood_post/1/labels.txt", "angry\ncalm", "calm\nangry"),
    "the least likely comes first": (
        "mood_post/1/model.py",
        "np.argsort(-scores",
        "np.argsort(scores",
    ),
    "the config asks for another function": ("mood_post/config.pbtxt", "softmax", "sigmoid"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_step_is_found_through_triton(published, tmp_path, fault):
    home, task, reference = published
    copy_pipeline(ModelRepository(home / "model_repository"), "mood", tmp_path / "repository")
    path, old, new = FAULTS[fault]
    _replace(tmp_path / "repository" / path, old, new)
    proof = proved_through_triton(
        ModelRepository(tmp_path / "repository"), tmp_path, task, reference
    )
    failed = [check for check in proof.checks if not check.passed]
    assert failed, f"{fault}: nobody noticed"
    assert any(check.worst for check in failed)


def _engine(home, tmp_path, change):
    model = onnx.load(home / "model_repository/mood_onnx/1/model.onnx")
    change(model)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def _scale_the_head(model):
    """Change the last bias slightly."""
    vectors = {i.name for i in model.graph.initializer if len(i.dims) == 1}
    biased = [node for node in model.graph.node if node.input and node.input[-1] in vectors]
    _change(
        model,
        biased[-1].input[-1],
        lambda values: values + 0.01 * np.arange(len(values), dtype=np.float32),
    )


def _change(model, name, change):
    for initializer in model.graph.initializer:
        if initializer.name == name:
            values = change(numpy_helper.to_array(initializer).copy())
            initializer.CopyFrom(numpy_helper.from_array(values, name))


def _ignore_the_mask(model):
    """Make every position count: readers of the mask read ones instead."""
    nodes = model.graph.node
    ones = onnx.helper.make_node("Where", ["always", "ones_like", "ones_like"], ["all_ones"])
    shape = onnx.helper.make_node("Mul", ["attention_mask", "zero"], ["zeros_like"])
    plus = onnx.helper.make_node("Add", ["zeros_like", "one"], ["ones_like"])
    for node in nodes:
        for index, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[index] = "all_ones"
    for name, value in (("zero", 0), ("one", 1)):
        model.graph.initializer.append(
            onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [], [value])
        )
    model.graph.initializer.append(
        onnx.helper.make_tensor("always", onnx.TensorProto.BOOL, [], [True])
    )
    for index, node in enumerate((shape, plus, ones)):
        nodes.insert(index, node)


@pytest.mark.parametrize("change", [_scale_the_head, _ignore_the_mask])
def test_a_fault_in_the_graph_is_found(published, tmp_path, change):
    home, task, reference = published
    failed = [
        check
        for check in prove_graph(task, _engine(home, tmp_path, change), reference).checks
        if not check.passed
    ]
    assert failed
    assert any("original" in check.worst or check.worst for check in failed)


def test_the_verb_passes_or_fails_and_changes_nothing(published, tmp_path):
    home, _, _ = published
    command = ("prove", "mood", "--against", str(home / "bert"))
    run = tidegate(home, *command, "--json")
    assert run.returncode == 0, run.stdout + run.stderr
    record = json.loads(run.stdout)
    assert record["passed"] and len(record["proofs"]) == 2
    labels = home / "model_repository/mood_post/1/labels.txt"
    right = labels.read_text()
    _replace(labels, "angry\ncalm", "calm\nangry")
    try:
        run = tidegate(home, *command)
    finally:
        labels.write_text(right)
    assert run.returncode == 1
    assert "NOT the original's outputs" in run.stdout
    assert re.search(r"FAIL parity: largest difference.*worst: '.*original", run.stdout)


def test_a_graph_other_than_the_proved_one_is_reported(tmp_path):
    """However small the change: 8 bits may round off more than many faults do."""
    from converters.cache import files_sha256
    from tidegate.app.engines import same_file
    from tidegate.app.prove import SAME_ENGINE

    (tmp_path / "model.onnx").write_bytes(b"one")
    recorded = files_sha256([tmp_path / "model.onnx"])
    assert same_file(SAME_ENGINE, recorded, tmp_path / "model.onnx").passed
    (tmp_path / "model.onnx").write_bytes(b"onf")
    check = same_file(SAME_ENGINE, recorded, tmp_path / "model.onnx")
    assert (check.name, check.passed) == (SAME_ENGINE, False)
    assert "proof.json says" in check.worst
