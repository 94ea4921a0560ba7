"""The proof of a served image pipeline catches faults in decoding, labels and batches."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from converters.tasks.image_classification import served as served_image_proof
from converters.tasks.image_classification import served_steps as served_image_steps
from converters.tasks.image_classification.checks import Graph
from converters.tasks.image_classification.image_task import sample_images
from ensembles.steps import decode_image
from tests.converters.tasks.image_in_process import InProcess, Tensor, few_converted


@pytest.fixture(scope="module")
def converted():
    return few_converted()


@pytest.fixture(scope="module")
def reference(converted):
    return converted.reference


def _failed(checks):
    return {check.name for check in checks if not check.passed}


@pytest.fixture
def served(converted, reference, monkeypatch):
    """Run the checks on a pipeline of our own steps in this process."""
    graph, golden = Graph(converted.engine), converted.task.golden(reference)

    def run(**changes):
        client = InProcess(reference, graph, changes.pop("golden", golden), **changes)
        for module in (served_image_proof, served_image_steps):
            monkeypatch.setattr(module.triton, "InferInput", Tensor)
        monkeypatch.setattr(served_image_proof, "ServedClient", lambda address: client)
        return served_image_proof.served_checks("127.0.0.1:1", reference, sample_images(reference))

    return run


def test_the_real_steps_pass(served):
    assert not _failed(served())


def _squeezed(image, edge, resample):
    return image.resize((edge, edge), Image.Resampling(resample))


def _bilinear(image, edge, resample):
    return decode_image.resize_shorter(image, edge, 2)


def _one_column_off(image, height, width):
    left, top = (image.width - width) // 2 + 1, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _wrong_for_large(image, edge, resample):
    return decode_image.resize_shorter(image, edge, resample if image.width < 2000 else 2)


def _wrong_channels(image):
    red, green, blue = image.convert("RGB").split()
    return Image.merge("RGB", (blue, green, red))


def _wrong_for_cmyk(image):
    return image.convert("L").convert("RGB") if image.mode == "CMYK" else image.convert("RGB")


SCORES = "parity: the score of each label, one per request"
PIXELS = "pixels, one per request"
OPERATIONS = {
    "without the aspect": ("resize_shorter", _squeezed, SCORES),
    "bilinear": ("resize_shorter", _bilinear, PIXELS),
    "one column off": ("crop", _one_column_off, PIXELS),
    "bilinear for the largest only": ("resize_shorter", _wrong_for_large, PIXELS),
    "never normalised": ("normalize", lambda image, mean, std: image, PIXELS),
}
FUNCTIONS = {
    "channels exchanged": ("_rgb", _wrong_channels, SCORES),
    "16 bits as they come": ("_rgb", lambda image: image.convert("RGB"), PIXELS),
    "CMYK in grey": ("_rgb", _wrong_for_cmyk, PIXELS),
    "EXIF not read": ("_turn", lambda image: None, "format and EXIF invariance"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_fault_in_the_transform_is_caught(served, monkeypatch, name):
    operation, fault, check = OPERATIONS[name]
    monkeypatch.setitem(decode_image.OPERATIONS, operation, fault)
    assert check in _failed(served())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_fault_in_the_decoding_is_caught(served, monkeypatch, name):
    function, fault, check = FUNCTIONS[name]
    monkeypatch.setattr(decode_image, function, fault)
    checks = served()
    assert check in _failed(checks)
    worst = next(result.worst for result in checks if result.name == check)
    assert "original" in worst


def test_an_image_that_the_step_refuses_is_named(served, monkeypatch):
    monkeypatch.setattr(decode_image, "SHORTEST_SIDE", 50)
    checks = {check.name: check for check in served()}
    assert checks["images that got an error"].worst.startswith("'coffee-small': is 60x40 pixels")


def _second_row_moved(pixels):
    return np.concatenate([pixels[:1], np.roll(pixels[1:], 1, axis=3)])


def test_pixels_that_are_wrong_only_in_a_batch_are_caught(served):
    failed = _failed(served(spoil_pixels=_second_row_moved))
    assert {"pixels, 8 per request", "batch invariance, served"} <= failed
    assert PIXELS not in failed


def test_exchanged_labels_that_no_sample_gets_are_caught(served, reference):
    labels = list(reference.metadata["labels"])
    labels[700], labels[701] = labels[701], labels[700]
    checks = served(labels=labels)
    assert _failed(checks) == {"labels and scores of every class"}
    check = next(result for result in checks if not result.passed)
    assert check.worst.startswith("class 700 is called b'parachute', original b'paper towel'")


def test_labels_out_of_order_are_caught_when_served(served, reference):
    labels = reference.metadata["labels"]
    failed = _failed(served(labels=labels[1:] + labels[:1]))
    assert "task: same likeliest label, one per request" in failed
    assert "labels and scores of every class" in failed


def _neighbours(label, score):
    return label, np.roll(score, 1, axis=0)


def _second_label(label, score):
    if len(label) > 1:
        label = label.copy()
        label[1:, [0, 1]] = label[1:, [1, 0]]
    return label, score


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (_neighbours, "batch invariance, served"),
        (_second_label, "task: same likeliest label, 8 per request"),
        (lambda label, score: (label, score * np.float32(1.002)), SCORES),
        (lambda label, score: (label[:, :4], score[:, :4]), "labels and scores of every class"),
        (lambda label, score: (label[:1], score[:1]), "images that got an error"),
    ],
)
def test_wrong_labels_and_scores_are_caught(served, spoil, check):
    assert check in _failed(served(spoil_labels=spoil))


def test_a_golden_sample_that_is_not_the_originals_is_caught(served, converted, reference):
    golden = converted.task.golden(reference)
    other_score = {**golden.expect, "score": [golden.expect["score"][0] - 0.1]}
    for expect in (other_score, {"label": ["no such"], "score": golden.expect["score"]}):
        assert _failed(served(golden=replace(golden, expect=expect))) == {"golden sample, served"}
