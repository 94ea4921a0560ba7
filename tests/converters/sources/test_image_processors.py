"""Every supported image processor of transformers against the step, to the last bit."""

import io
import json

import numpy as np
import pytest
import transformers
from PIL import Image

from converters.errors import SourceMissing, SourceRefused
from converters.sources.huggingface import HuggingFaceFolder
from converters.sources.image_processor import open_processor, transform
from converters.tasks.image_classification.samples import encoded
from ensembles.steps.decode_image import Transform, prepare
from tests.ensembles.images import colours

SQUARE, SHORTER = {"height": 48, "width": 40}, {"shortest_edge": 48}
CROP = {"height": 40, "width": 36}
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
PROCESSORS = {
    "ViT": [
        {},
        {"size": SQUARE, "resample": 0},
        {"size": 32, "resample": 1},
        {"size": SQUARE, "do_normalize": False},
        {"size": SQUARE, "do_rescale": False, "image_mean": [120, 110, 100], "image_std": [50] * 3},
        {"size": SQUARE, "rescale_factor": 1 / 127.5, "image_mean": MEAN, "image_std": STD},
        {"size": SHORTER, "do_center_crop": True, "crop_size": 50, "resample": 4},
        {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 300, "width": 70}},
    ],
    "DeiT": [{}, {"size": SHORTER, "crop_size": CROP}, {"do_center_crop": False, "size": 50}],
    "Beit": [{}, {"do_center_crop": True, "size": 64, "crop_size": 48, "do_reduce_labels": True}],
    "ConvNext": [
        {},
        {"size": {"shortest_edge": 224}, "crop_pct": 0.875},
        {"size": {"shortest_edge": 95}, "crop_pct": 0.95, "resample": 2},
        {"size": 48, "do_center_crop": True, "crop_size": 40},
    ],
    "PoolFormer": [
        {},
        {"size": SHORTER, "crop_pct": 0.95, "crop_size": CROP},
        {"size": {"height": 48, "width": 48}, "crop_size": CROP},
        {"size": SQUARE, "crop_size": 36},
    ],
    "Levit": [{}, {"size": SHORTER, "crop_size": 48}, {"size": SQUARE, "crop_size": 36}],
    "EfficientNet": [
        {},
        {"size": SQUARE, "include_top": False, "rescale_offset": True},
        {"size": SQUARE, "image_mean": MEAN, "image_std": STD, "resample": 0},
        {"size": SQUARE, "do_normalize": False},
    ],
    "MobileNetV1": [{}, {"size": SHORTER, "crop_size": CROP, "image_mean": MEAN}],
    "MobileNetV2": [{}, {"size": SHORTER, "crop_size": CROP, "resample": 5}],
    "MobileViT": [
        {},
        {"size": SHORTER, "crop_size": 60, "do_flip_channel_order": False, "do_normalize": True},
    ],
    "Perceiver": [{}, {"size": SQUARE, "crop_size": {"height": 50, "width": 60}}],
    "Segformer": [{"size": SQUARE}, {"size": SQUARE, "do_center_crop": True, "crop_size": 20}],
    "Bit": [{}, {"size": SHORTER, "crop_size": CROP}],
    "CLIP": [{}],
    "Siglip": [{}],
    "Pvt": [{}],
}
FILES = [
    encoded(colours(size), file_format, **options)
    for size, file_format, options in (
        ((97, 61), "PNG", {}),
        ((33, 160), "JPEG", {"quality": 80}),
        ((500, 333), "WEBP", {"quality": 80}),
        ((20, 20), "PNG", {}),
    )
]
# PNGs that name a transparent colour: do_convert_rgb shows it as white.
_PALETTE = colours((90, 70)).quantize(16)
FILES += [
    encoded(_PALETTE, "PNG", transparency=3),
    encoded(colours((90, 70)), "PNG", transparency=colours((90, 70)).getpixel((45, 30))),
    encoded(
        colours((90, 70)).convert("L").point(lambda v: 90 if v > 90 else v), "PNG", transparency=90
    ),
]


def _folder(tmp_path, name, settings) -> HuggingFaceFolder:
    processor = getattr(transformers, f"{name}ImageProcessorPil")(**settings)
    processor.save_pretrained(tmp_path)
    return HuggingFaceFolder(tmp_path, {})


@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, settings) for name, variations in PROCESSORS.items() for settings in variations],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "as it is",
)
def test_the_step_gives_the_processors_pixels(tmp_path, name, settings):
    original = open_processor(_folder(tmp_path, name, settings))
    document = json.loads(json.dumps(transform(original)))
    step = Transform(document)
    for file in FILES:
        with Image.open(io.BytesIO(file)) as image:
            expected = original(image.convert("RGB"), return_tensors="np")["pixel_values"][0]
        actual = prepare(file, step)
        assert actual.dtype == np.float32
        assert actual.shape == (3, document["height"], document["width"]) == expected.shape
        assert np.array_equal(actual, expected)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ViT", {"size": SHORTER}, "images would keep different sizes"),
        ("ViT", {"do_resize": False}, "images would keep different sizes"),
        ("ViT", {"size": {"shortest_edge": 48, "longest_edge": 90}}, "size is {'longest_edge': 90"),
        ("ViT", {"size": {"max_height": 48, "max_width": 90}}, "size is {'max_height'"),
        ("ViT", {"size": 2000}, "the size is 2000x2000"),
        ("ViT", {"size": 48, "resample": 9}, "resample is 9"),
        ("ViT", {"image_mean": [0.5]}, "image_mean does not have 3 numbers"),
        ("ViT", {"image_std": [0.5, 0.5, 0]}, "image_std is 0"),
        ("ViT", {"do_pad": True, "pad_size": {"height": 90, "width": 90}}, "pad_size is set"),
        ("ConvNext", {"size": SQUARE}, "without shortest_edge"),
        ("ConvNext", {"size": SHORTER, "crop_pct": 0.001}, "the shorter side would be 48000"),
        ("Donut", {}, "its class overrides preprocess, "),
        ("TextNet", {}, "its class overrides"),
        ("ImageGPT", {"clusters": [[0, 0, 0]]}, "its class overrides _preprocess"),
    ],
)
def test_what_the_step_cannot_do_is_refused_by_name(tmp_path, name, settings, message):
    processor = open_processor(_folder(tmp_path, name, settings))
    with pytest.raises(SourceRefused) as refused:
        transform(processor)
    assert f"{name}ImageProcessorPil cannot be reproduced exactly" in str(refused.value)
    assert message in str(refused.value)


def test_a_folder_without_a_processor_is_refused(tmp_path):
    with pytest.raises(SourceMissing, match=r"has no preprocessor_config\.json, and without it"):
        open_processor(HuggingFaceFolder(tmp_path, {}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"auto_map": {"AutoImageProcessor": "evil.Reader"}}', "would run its own code"),
        ('{"image_processor_type": "NoSuchImageProcessor"}', "cannot load the image processor"),
        ('{"image_processor_type": "ViTImageProcessor", "size": "big"}', "cannot load"),
        ('{"image_processor_type": "PPLCNetImageProcessor"}', "torchvision"),
    ],
)
def test_a_processor_that_is_broken_is_refused(tmp_path, text, message):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(SourceRefused, match=message):
        transform(open_processor(HuggingFaceFolder(tmp_path, {"model_type": "vit"})))


def test_an_old_file_is_read_as_transformers_reads_it(tmp_path):
    """Before version 5: a feature extractor, a size that is a number."""
    old = {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    document = transform(open_processor(HuggingFaceFolder(tmp_path, {"model_type": "vit"})))
    assert document["operations"][0] == {"op": "resize_shorter", "edge": 256, "resample": 3}
    assert (document["height"], document["width"]) == (224, 224)
