"""The proof has teeth: faults planted in the graph, the decoding and the labels are caught."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from converters import served_image_proof
from converters.image_classification import Asked, Converted
from converters.image_oracle import classify
from converters.image_proof import Graph, golden_label, known_photos, prove
from converters.proof import Proof
from converters.served_image_proof import prove_served_classification
from ensembles.image_classification import ENGINE, LABELS, PIPELINE, TOP_K
from ensembles.steps import decode_image
from ensembles.steps.top_labels import TopLabels
from tidegate.builders import build_image_classification, labels_file

SHOWN = ("golden", "coffee", "chelsea-exif6", "flower-grey16", "coffee-cmyk", "china-half")
SERVED = (
    "golden",
    "camera",
    "chelsea",
    "coffee-rgb",
    "coffee-exif6",
    "coffee-exif8-jpeg",
    "coffee-webp-lossless",
    "coffee-alpha",
    "flower-grey",
    "flower-grey16",
    "flower-palette",
    "flower-cmyk",
    "motorcycle-half",
)


@pytest.fixture(scope="module")
def converted() -> Converted:
    built = build_image_classification(lambda text: None)
    return Converted(built.files[ENGINE.name]["model.onnx"].parent)


@pytest.fixture(scope="module")
def labels() -> list[str]:
    return labels_file(LABELS).read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def original(converted, tmp_path_factory):
    """The oracle's pixels and logits of a few pictures, asked for anew."""
    paths = []
    for name in SHOWN:
        asked = converted.folder / "asked" / name
        paths.append(asked if asked.is_file() else converted.folder / "samples" / name)
    return classify(paths, tmp_path_factory.mktemp("oracle"))


def _failed(proof: Proof) -> set[str]:
    return {check.name for check in proof.checks if not check.passed}


def test_the_real_conversion_passes(converted, original):
    proof = prove("real", Graph(converted.engine), SHOWN, original)
    proof.require()
    assert proof.samples == len(SHOWN)
    assert '"passed": true' in converted.proof.read_text()


def test_our_decoding_is_the_originals_transform(converted, original):
    """The step's pixels are the oracle's, to the last bit of the normalisation."""
    for name, pixels in zip(SHOWN, original["pixels"], strict=True):
        ours = decode_image.prepare((converted.folder / "samples" / name).read_bytes())
        assert np.abs(ours - pixels).max() < 1e-6, name


def _tampered(converted, target, change) -> Graph:
    model = onnx.load(converted.engine)
    change(model.graph)
    onnx.save(model, target)
    return Graph(target)


def _scale_a_weight(graph):
    weight = max(graph.initializer, key=lambda each: len(each.raw_data))
    scaled = numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(numpy_helper.from_array(scaled, weight.name))


def _nothing_is_a_number(graph):
    weight = max(graph.initializer, key=lambda each: len(each.raw_data))
    broken = numpy_helper.to_array(weight) * np.float32(np.nan)
    weight.CopyFrom(numpy_helper.from_array(broken, weight.name))


def _look_at_the_batch(graph):
    """Subtract the batch's mean: right for a picture that is alone, and only there."""
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name == "logits":
                node.output[place] = "own"
    axes = numpy_helper.from_array(np.array([0], dtype=np.int64), "batch_axis")
    graph.initializer.append(axes)
    for node in (
        onnx.helper.make_node("ReduceMax", ["own", "batch_axis"], ["most"], keepdims=1),
        onnx.helper.make_node("Max", ["own", "most"], ["logits"]),
    ):
        graph.node.append(node)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (_scale_a_weight, "parity: largest difference of a logit"),
        (_nothing_is_a_number, "extreme pictures: answers that are not finite"),
        (_look_at_the_batch, "batch invariance"),
    ],
)
def test_a_fault_in_the_graph_is_caught(converted, original, tmp_path, change, check):
    graph = _tampered(converted, tmp_path / "model.onnx", change)
    assert check in _failed(prove("planted", graph, SHOWN, original))


def test_labels_out_of_order_are_caught(original, labels):
    known = {"coffee": {"espresso"}}
    assert known_photos(original["logits"], SHOWN, labels, known).passed
    assert golden_label("tripod", original["logits"][0], labels).passed
    shifted = labels[1:] + labels[:1]
    check = known_photos(original["logits"], SHOWN, shifted, known)
    assert not check.passed
    assert "coffee is called" in check.worst
    assert not golden_label("tripod", original["logits"][0], shifted).passed


@pytest.fixture
def served(converted, labels, monkeypatch):
    """Prove the pipeline of our own steps in this process, with ``labels`` of its own."""
    whole = converted.asked()
    rows = [whole.names.index(name) for name in SERVED]
    asked = Asked(
        list(SERVED),
        [whole.twins[row] for row in rows],
        [whole.pictures[row] for row in rows],
        whole.logits[rows],
    )
    graph = Graph(converted.engine)

    def run(names=labels, spoil=lambda label, score: (label, score)):
        step = TopLabels(names, TOP_K)

        def classify_here(client, model, pictures):
            pixels = np.stack([decode_image.prepare(each) for each in pictures])
            return spoil(*step(graph(pixels)))

        monkeypatch.setattr(served_image_proof, "_classify", classify_here)
        return prove_served_classification("127.0.0.1:1", PIPELINE.name, asked, labels)

    return run


def test_the_real_steps_pass(served):
    served().require()


def _wrong_resampling(image):
    return image.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))


def _wrong_channels(image):
    red, green, blue = image.convert("RGB").split()
    return Image.merge("RGB", (blue, green, red))


SCORES = "parity: the score of each label"
PLANTED = {
    "bilinear, without the aspect": ("_middle", _wrong_resampling, SCORES),
    "channels exchanged": ("_rgb", _wrong_channels, SCORES),
    "16 bits and palettes as they come": ("_rgb", lambda image: image.convert("RGB"), SCORES),
    "EXIF not read": ("_turn", lambda image: None, "format and EXIF invariance"),
    "another mean": ("MEAN", np.float32(127.5), SCORES),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_in_the_decoding_is_caught(served, monkeypatch, name):
    place, fault, check = PLANTED[name]
    monkeypatch.setattr(decode_image, place, fault)
    assert check in _failed(served())


def test_labels_out_of_order_are_caught_when_served(served, labels):
    failed = _failed(served(names=labels[1:] + labels[:1]))
    assert "task: pictures with another likeliest label" in failed


def test_answers_that_depend_on_the_batch_are_caught(served):
    """The score of a neighbour, as a step would give it that mixes up its rows."""
    failed = _failed(served(spoil=lambda label, score: (label, np.roll(score, 1, axis=0))))
    assert failed == {"batch invariance, served"}
