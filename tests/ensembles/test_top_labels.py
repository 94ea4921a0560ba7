"""The labelling step, imported as an ordinary module."""

import json

import numpy as np
import pytest

from ensembles.steps.top_labels import TopLabels, TritonPythonModel
from tests.running import ROOT

LABELS = ROOT / "converters/tasks/image_classification/labels/imagenet_1k.txt"
NAMES = ["ant", "bee", "cat", "dog"]


def test_the_likeliest_come_first_with_their_scores():
    label, score = TopLabels(NAMES, 2)(np.log([[0.1, 0.2, 0.6, 0.1]]).astype(np.float32))
    assert label.tolist() == [[b"cat", b"bee"]]
    assert score.dtype == np.float32
    assert score == pytest.approx(np.array([[0.6, 0.2]]))


def test_rows_are_independent():
    logits = np.array([[9, 0, 0, 0], [0, 0, 0, 9], [0, 9, 0, 0]], dtype=np.float32)
    label, score = TopLabels(NAMES, 4)(logits)
    assert label[:, 0].tolist() == [b"ant", b"dog", b"bee"]
    assert score.sum(axis=1) == pytest.approx(1)
    assert (np.diff(score, axis=1) <= 0).all()


def test_equal_scores_keep_the_classes_order():
    label, _ = TopLabels(NAMES, 3)(np.zeros((1, 4), dtype=np.float32))
    assert label.tolist() == [[b"ant", b"bee", b"cat"]]


def test_large_logits_do_not_overflow():
    _, score = TopLabels(NAMES, 1)(np.array([[3e38, 0, 0, -3e38]], dtype=np.float32))
    assert score.tolist() == [[1.0]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(value):
    with pytest.raises(ValueError, match="not finite"):
        TopLabels(NAMES, 1)(np.array([[0, value, 0, 0]], dtype=np.float32))


def test_logits_of_other_classes_are_an_error():
    with pytest.raises(ValueError, match=r"returned \(1, 3\), not \[n, 4\]"):
        TopLabels(NAMES, 1)(np.zeros((1, 3), dtype=np.float32))


@pytest.mark.parametrize("k", [0, 5])
def test_k_is_checked(k):
    with pytest.raises(ValueError, match="give 1 to 4"):
        TopLabels(NAMES, k)


def test_the_model_reads_the_labels_of_its_version(tmp_path):
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "labels.txt").write_text("ant\nbee\ncat\ndog\n")
    config = json.dumps({"parameters": {"top_k": {"string_value": "1"}}})
    model = TritonPythonModel()
    model.initialize(
        {"model_config": config, "model_repository": str(tmp_path), "model_version": "3"}
    )
    label, _ = model._top_labels(np.array([[0, 0, 0, 1]], dtype=np.float32))
    assert label.tolist() == [[b"dog"]]


def test_the_label_file_names_a_thousand_classes():
    labels = LABELS.read_text(encoding="utf-8").splitlines()
    assert len(labels) == len(set(labels)) == 1000
    assert all(label == label.strip() and label for label in labels)
    # In ImageNet's own order.
    assert (labels[0], labels[282], labels[967], labels[999]) == (
        "tench",
        "tiger cat",
        "espresso",
        "toilet tissue",
    )
