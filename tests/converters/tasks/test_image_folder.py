"""A Hugging Face folder with an image classifier: what is converted, and what is refused."""

import json

import pytest
import torch

from converters.errors import SourceMissing, SourceRefused
from converters.task import ConversionRequest
from converters.tasks.image_classification.task import HuggingFaceImages
from tests.tiny_image_models import LABELS, SIDE, save_image_classifier


@pytest.fixture
def folder(tmp_path):
    return save_image_classifier("vit", tmp_path / "model")


def _opened(folder) -> HuggingFaceImages:
    return HuggingFaceImages(ConversionRequest("things", str(folder)))


def _edit(folder, name="config.json", **changes) -> None:
    path = folder / name
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))


def test_labels_size_and_function_are_the_folders(folder, tmp_path):
    task = _opened(folder)
    assert task.metadata() == {
        "labels": list(LABELS),
        "function": "softmax",
        "top_k": 5,
        "channels": 3,
        "height": SIDE,
        "width": SIDE,
    }
    for part in ("pre", "post"):
        (tmp_path / part).mkdir()
    task.write_steps(tmp_path)
    assert (tmp_path / "post" / "labels.txt").read_text().splitlines() == list(LABELS)
    document = json.loads((tmp_path / "pre" / "preprocess.json").read_text())
    operations = [operation["op"] for operation in document["operations"]]
    assert operations == ["resize", "rescale", "normalize"]
    assert task.card() == {"model": "model", "architecture": "ViTForImageClassification"}


@pytest.mark.parametrize(
    ("changes", "function"),
    [
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"problem_type": "single_label_classification"}, "softmax"),
    ],
)
def test_the_function_is_as_transformers_chooses_it(folder, changes, function):
    _edit(folder, **changes)
    assert _opened(folder).function == function


def test_one_label_is_a_sigmoid(tmp_path):
    labels = {"id2label": {0: "defect"}, "label2id": {"defect": 0}}
    task = _opened(save_image_classifier("vit", tmp_path / "model", **labels))
    metadata = task.metadata()
    assert (metadata["function"], metadata["top_k"], metadata["labels"]) == (
        "sigmoid",
        1,
        ["defect"],
    )


def _no_processor(folder):
    (folder / "preprocessor_config.json").unlink()


def _another_size(folder):
    _edit(folder, "preprocessor_config.json", size={"height": 96, "width": 96})


def _grey_with_three_means(folder):
    save_image_classifier("vit", folder, num_channels=1)


def _grey_made_rgb(folder):
    processor = {"image_mean": [0.5], "image_std": [0.5], "do_convert_rgb": True}
    save_image_classifier("vit", folder, processor=processor, num_channels=1)


def _infrared(folder):
    save_image_classifier("vit", folder, num_channels=4)


def _fewer_labels(folder):
    _edit(folder, id2label={"0": "cat", "1": "dog"}, label2id={"cat": 0, "dog": 1})


def _a_label_of_two_lines(folder):
    id2label = {str(index): label for index, label in enumerate(LABELS)}
    _edit(folder, id2label={**id2label, "0": "cat\nor dog"})


def _a_regression(folder):
    _edit(folder, problem_type="regression")


def _no_head(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    weights = {name: tensor for name, tensor in weights.items() if "classifier" not in name}
    save_file(weights, path, metadata={"format": "pt"})


def _a_text_model(folder):
    _edit(folder, model_type="bert", architectures=["BertForSequenceClassification"])


REFUSED = {
    _no_processor: (SourceMissing, "has no preprocessor_config.json"),
    _another_size: (SourceRefused, "does not run on RGB images of 96x96"),
    _grey_with_three_means: (SourceRefused, "image_mean does not have one number, for grey"),
    _grey_made_rgb: (SourceRefused, "set do_convert_rgb to false"),
    _infrared: (SourceRefused, "takes 4 channels"),
    _fewer_labels: (SourceRefused, "transformers cannot load"),
    _a_label_of_two_lines: (SourceRefused, "label 0 in"),
    _a_regression: (SourceRefused, "problem_type is regression"),
    _no_head: (SourceRefused, "lacks weights"),
    _a_text_model: (SourceRefused, "give --task text-classification"),
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__.strip("_"))
def test_a_folder_that_does_not_fit_is_refused(folder, spoil):
    spoil(folder)
    error_type, message = REFUSED[spoil]
    with pytest.raises(error_type) as refused:
        assert _opened(folder).module
    assert message in str(refused.value)


def test_a_head_of_another_width_than_its_labels_is_refused(folder, monkeypatch):
    task = _opened(folder)
    monkeypatch.setattr(task, "_labels", LABELS[:3])
    with pytest.raises(SourceRefused, match=r"returns \(2, 5\) .* and has 3 labels"):
        assert task.module


def test_fused_attention_that_cannot_be_exported_is_written_out(tmp_path):
    """Swin's, with torch 2.13; the exported graph computes the same."""
    task = _opened(save_image_classifier("swin", tmp_path / "model"))
    pixels = torch.randn(3, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = task.module(pixels)
    task.export(tmp_path / "model.onnx")
    from converters.tasks.image_classification.checks import Graph

    actual = Graph(tmp_path / "model.onnx")(pixels.numpy())
    assert abs(actual - expected.numpy()).max() < 1e-5


def _with_preset(folder, preset) -> HuggingFaceImages:
    options = {"preprocess": preset} if preset else {}
    return HuggingFaceImages(ConversionRequest("things", str(folder), options=options))


@pytest.mark.parametrize(
    ("preset", "operations", "size"),
    [
        ("imagenet", ["resize_shorter", "crop", "rescale", "normalize"], (SIDE, SIDE)),
        ("imagenet-bicubic:96", ["resize_shorter", "crop", "rescale", "normalize"], (96, 96)),
        ("half", ["resize", "rescale", "normalize"], (SIDE, SIDE)),
        ("clip", ["resize_shorter", "crop", "rescale", "normalize"], (SIDE, SIDE)),
    ],
)
def test_a_flag_replaces_a_missing_processor(folder, preset, operations, size):
    _no_processor(folder)
    document = _with_preset(folder, preset).transform
    assert [operation["op"] for operation in document["operations"]] == operations
    assert (document["height"], document["width"]) == size
    if preset == "imagenet":  # as torchvision evaluates: Resize(256), CenterCrop(224)
        assert document["operations"][0]["edge"] == round(SIDE * 256 / 224)
        assert document["operations"][0]["resample"] == 2
        assert document["operations"][3]["mean"] == [0.485, 0.456, 0.406]


def test_the_original_uses_the_flags_preprocessing(folder, tmp_path):
    """torchvision's evaluation transform, written out in Pillow and NumPy."""
    import numpy as np
    from PIL import Image

    from converters.tasks.image_classification.photos import photo_file

    _no_processor(folder)
    (tmp_path / "work").mkdir()
    task = _with_preset(folder, "imagenet")
    reported = task.original([photo_file("chelsea")] * 2, tmp_path / "work")
    with Image.open(photo_file("chelsea")) as opened:
        image = opened.convert("RGB")
    edge = round(SIDE * 256 / 224)
    width, height = (int(edge * side / min(image.size)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32) / 255
    expected = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.abs(reported["pixels"][0] - expected.transpose(2, 0, 1)).max() < 1e-5


@pytest.mark.parametrize("preset", ["resnet", "imagenet:0", "imagenet:9999", "imagenet 384"])
def test_an_unknown_preset_is_refused(folder, preset):
    _no_processor(folder)
    with pytest.raises((SourceRefused, SourceMissing), match=r"imagenet-bicubic, half|1 to 640"):
        _with_preset(folder, preset)


def test_a_flag_besides_the_folders_own_file_is_refused(folder):
    with pytest.raises(SourceRefused, match=r"has preprocessor_config.json.*omit --preprocess"):
        _with_preset(folder, "imagenet")


GREY = {"image_mean": [0.25], "image_std": [0.5], "size": {"height": 28, "width": 28}}
DIGITS = {"num_channels": 1, "image_size": 28, "patch_size": 7}


@pytest.mark.parametrize("preset", ["", "half", "unit", "digits"])
def test_a_model_of_one_channel_sees_grey(tmp_path, preset):
    """The step's pixels, the original's, and both written out in Pillow and NumPy."""
    import numpy as np
    from PIL import Image

    from converters.tasks.image_classification.photos import photo_file
    from ensembles.steps import decode_image

    model = save_image_classifier("vit", tmp_path / "model", processor=GREY, **DIGITS)
    if preset:
        _no_processor(model)
    task = _with_preset(model, preset)
    assert task.metadata()["channels"] == 1
    (tmp_path / "work").mkdir()
    photo = photo_file("chelsea")
    reported = task.original([photo] * 2, tmp_path / "work")
    served = decode_image.prepare(photo.read_bytes(), decode_image.Transform(task.transform))
    with Image.open(photo) as opened:
        small = opened.convert("L").resize((28, 28), Image.Resampling.BILINEAR)
    mean, std = {"half": (0.5, 0.5), "unit": (0, 1), "digits": (0.1307, 0.3081)}.get(
        preset, (0.25, 0.5)
    )
    expected = ((np.asarray(small, np.float32) / 255 - mean) / std)[None]
    assert served.shape == reported["pixels"][0].shape == (1, 28, 28)
    assert np.abs(served - expected).max() < 1e-5
    assert np.abs(reported["pixels"][0] - served).max() < 1e-6
    with torch.no_grad():
        logits = task.module(torch.from_numpy(served)[None]).numpy()
    assert np.abs(reported["logits"][:1] - logits).max() < 1e-5


def test_a_preset_of_colours_is_refused_for_grey(tmp_path):
    model = save_image_classifier("vit", tmp_path / "model", num_channels=1)
    _no_processor(model)
    with pytest.raises(SourceRefused, match="use half, unit, digits for a greyscale model"):
        _with_preset(model, "imagenet")


def test_an_original_that_keeps_state_is_detected():
    """A network with other outputs the second time, run afresh and in reverse."""
    import numpy as np

    from converters.proof.reference_process import repeat_positions
    from converters.proof.statefulness import require_same_again

    positions = repeat_positions(12)
    first = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
    names = [f"image {row}" for row in range(12)]
    require_same_again("logits", first, first[positions], names)
    require_same_again("label", first > 0, first[positions] > 0, names)
    small = first.copy()
    small[:, 2] *= 1e-6  # an element that is small beside the others counts as they do
    spoilt = small + np.array([0, 0, 1e-7], dtype=np.float32)
    with pytest.raises(SystemExit, match="keeps state from call to call"):
        require_same_again("logits", small, spoilt[positions], names)
    with pytest.raises(SystemExit, match="label: "):
        require_same_again("label", first > 0, first[positions] > 0.5, names)
    with pytest.raises(SystemExit, match="with the shape"):
        require_same_again("logits", first, first[positions][:, :2], names)
