"""Unfamiliar image classifiers are converted, proved and served, and faults are found."""

import base64
import json
import shutil
import subprocess

import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from converters.tasks.image_classification.photos import photo_file
from tests.command_line import tidegate
from tests.running import launch, stop, wait_ready
from tests.tiny_image_models import LABELS, save_image_classifier

PHOTOS = ("coffee", "rocket")
# One crops and ends in a softmax, the other stretches and ends in a sigmoid per label.
MODELS = {"shape": "convnext", "marks": "vit"}


def _convert(home, source, name, samples) -> subprocess.CompletedProcess[str]:
    task = ("--task", "image-classification", "--name", name, "--samples", str(samples))
    return tidegate(home, "convert", str(source), *task)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name in PHOTOS:
        with Image.open(photo_file(name)) as image:
            image.convert("RGB").resize((300, 220)).save(folder / f"{name}.jpg", quality=90)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_image_classifier("convnext", folder / "convnext")
    multi = {"problem_type": "multi_label_classification"}
    save_image_classifier("vit", folder / "vit", **multi)
    return folder


@pytest.fixture(scope="module")
def home(models, photos, tmp_path_factory):
    """A home whose repository has both models."""
    folder = tmp_path_factory.mktemp("home")
    for name, model in MODELS.items():
        run = _convert(folder, models / model, name, photos)
        assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def served(home):
    running = launch(home, *MODELS)
    wait_ready(running)
    yield running
    assert stop(running) == 0


@pytest.mark.parametrize("name", MODELS)
def test_the_endpoint_gives_the_originals_answers(served, models, photos, name):
    """From an image's bytes over REST, against transformers' own pipeline."""
    from transformers import pipeline

    original = pipeline("image-classification", model=str(models / MODELS[name]), device="cpu")
    for photo in sorted(photos.iterdir()):
        body = {"image": {"b64": base64.b64encode(photo.read_bytes()).decode()}}
        response = served.post(f"/v1/{name}", json=body)
        assert response.status_code == 200, response.text
        actual, expected = response.json()["labels"], original(str(photo))
        assert sorted(label["label"] for label in actual) == sorted(LABELS)
        scores = [label["score"] for label in expected]
        assert [label["score"] for label in actual] == pytest.approx(scores, abs=1e-4)
        assert actual[0]["label"] == expected[0]["label"]
        by_form = served.post(f"/v1/{name}", files={"image": photo.read_bytes()})
        assert by_form.json() == response.json()


def test_it_is_listed_documented_and_ready_without_code(served):
    names = {model["id"] for model in served.get("/v1/models").json()["data"]}
    assert names == set(MODELS)
    operation = served.get("/openapi.json").json()["paths"]["/v1/marks"]["post"]
    assert "ViTForImageClassification" in operation["description"]


def test_a_bad_image_is_the_clients_error(served):
    response = served.post("/v1/shape", files={"image": b"this is no image"})
    assert response.status_code == 422
    assert "is not a whole JPEG, PNG or WebP file" in response.json()["detail"]


def _another_filter(repository):
    path = repository / "shape_pre" / "1" / "preprocess.json"
    document = json.loads(path.read_text())
    document["operations"][0]["resample"] = 2
    path.write_text(json.dumps(document))


def _labels_exchanged(repository):
    path = repository / "shape_post" / "1" / "labels.txt"
    first, second, *others = path.read_text().splitlines()
    path.write_text("\n".join([second, first, *others]) + "\n")


def _scaled(repository):
    path = repository / "shape_onnx" / "1" / "model.onnx"
    model = onnx.load(path)
    feeding = next(node for node in model.graph.node if "logits" in node.output)
    weight = next(
        initializer
        for initializer in model.graph.initializer
        if initializer.name == feeding.input[1]
    )
    scaled = (numpy_helper.to_array(weight) * 1.005).astype("float32")
    weight.CopyFrom(numpy_helper.from_array(scaled, weight.name))
    onnx.save(model, path)


FAULTS = {
    _another_filter: "pixels, one per request",
    _labels_exchanged: "labels and scores of every class",
    _scaled: "parity: largest difference of a logit",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_prove_finds_later_changes(home, models, photos, tmp_path, fault):
    repository = home / "model_repository"
    target = tmp_path / "model_repository"
    shutil.copytree(repository, target)
    fault(target)
    source = ("--against", str(models / "convnext"), "--samples", str(photos))
    run = tidegate(tmp_path, "prove", "shape", *source)
    assert run.returncode == 1, run.stderr
    failed = next(line for line in run.stdout.splitlines() if f"FAIL {FAULTS[fault]}" in line)
    assert "original" in failed


def test_a_sample_of_the_wrong_type_is_refused_by_name(models, tmp_path):
    samples = tmp_path / "samples"
    samples.mkdir()
    (samples / "texts.txt").write_text("this is no image")
    run = _convert(tmp_path, models / "convnext", "shape", samples)
    assert run.returncode == 1
    assert "texts.txt cannot be read as an image" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "model_repository").exists()


def test_a_folder_without_a_preprocessor_is_refused(models, photos, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(models / "convnext", model)
    (model / "preprocessor_config.json").unlink()
    run = _convert(tmp_path, model, "shape", photos)
    assert run.returncode == 1
    assert "has no preprocessor_config.json" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "model_repository").exists()
