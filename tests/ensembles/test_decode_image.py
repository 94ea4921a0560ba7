"""The decoding step, imported as an ordinary module."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ExifTags, Image

from ensembles.steps import decode_image
from ensembles.steps.decode_image import InvalidImage, Transform
from tests.ensembles.images import bad_images, colours, encoded, png_of_16_bits

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
BAD = bad_images()
# EfficientNet-Lite0's.
DOCUMENT = {
    "height": 224,
    "width": 224,
    "operations": [
        {"op": "resize_shorter", "edge": 256, "resample": 3},
        {"op": "crop", "height": 224, "width": 224},
        {"op": "normalize", "mean": [127, 127, 127], "std": [128, 128, 128]},
    ],
}


def prepare(data: bytes) -> np.ndarray:
    return decode_image.prepare(data, Transform(DOCUMENT))


def _model(folder):
    """The step as Triton opens it, from version 1 of a model's folder."""
    (folder / "1").mkdir()
    (folder / "1" / "preprocess.json").write_text(json.dumps(DOCUMENT))
    model = decode_image.TritonPythonModel()
    model.initialize({"model_repository": str(folder), "model_version": "1"})
    return model


@pytest.fixture(autouse=True)
def as_in_triton(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", decode_image.PIXEL_LIMIT)


@pytest.fixture
def upright() -> np.ndarray:
    return prepare(encoded(colours(), "PNG"))


def test_pixels_are_rgb_and_normalised():
    red = prepare(encoded(Image.new("RGB", (50, 40), (255, 127, 0)), "PNG"))
    assert red.shape == (3, 224, 224)
    assert red.dtype == np.float32
    assert red[:, 100, 100].tolist() == [1.0, 0.0, -127 / 128]


def test_the_middle_is_cropped():
    """Shorter side to 256, then the middle 224: columns 144 to 367 of 512x256."""
    columns = np.tile(np.arange(512, dtype=np.float64) / 2, (256, 1))
    pixels = prepare(encoded(Image.fromarray(columns.astype(np.uint8)), "PNG"))
    values = pixels[0, 100] * 128 + 127
    assert values[0] == 144 // 2
    assert values[-1] == 367 // 2


@pytest.mark.parametrize("tag", TURNS)
@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_exif_orientation_is_applied(tag, file_format, upright):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = tag
    turned = colours().transpose(TURNS[tag])
    options = {"lossless": True} if file_format == "WEBP" else {}
    assert np.array_equal(prepare(encoded(turned, file_format, exif=exif, **options)), upright)


def test_a_turned_jpeg_is_upright(upright):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = colours().transpose(Image.Transpose.ROTATE_90)
    actual = prepare(encoded(turned, "JPEG", quality=95, exif=exif))
    assert np.abs(actual - upright).mean() < 0.02


def test_broken_exif_is_not_a_broken_image(upright):
    actual = prepare(encoded(colours(), "PNG", exif=b"Exif\0\0MM\0*\0\0\xff\xff nothing"))
    assert np.array_equal(actual, upright)


def test_alpha_is_dropped(upright):
    image = colours()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    assert np.array_equal(prepare(encoded(image, "PNG")), upright)


def test_a_palette_is_its_colours():
    paletted = colours().quantize(32)
    expected = prepare(encoded(paletted.convert("RGB"), "PNG"))
    assert np.array_equal(prepare(encoded(paletted, "PNG")), expected)
    assert np.array_equal(prepare(encoded(paletted, "PNG", transparency=0)), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_is_three_equal_channels(mode):
    pixels = prepare(encoded(colours().convert(mode), "PNG"))
    assert np.array_equal(pixels[0], pixels[1])
    assert np.array_equal(pixels[0], pixels[2])


def test_16_bit_colour_keeps_the_high_byte(upright):
    assert np.array_equal(prepare(png_of_16_bits(colours())), upright)


def test_16_bit_grey_keeps_the_high_byte():
    grey = colours().convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 99)
    assert np.array_equal(prepare(encoded(deep, "PNG")), prepare(encoded(grey, "PNG")))


def test_cmyk_shows_the_same_colours(upright):
    actual = prepare(encoded(colours().convert("CMYK"), "JPEG", quality=95, subsampling=0))
    assert np.abs(actual - upright).mean() < 0.02


def test_a_phones_jpeg_with_further_images_is_its_first(upright):
    further = [Image.new("RGB", (96, 64), "black")]
    mpo = encoded(colours(), "MPO", save_all=True, append_images=further, quality=95)
    assert np.abs(prepare(mpo) - upright).mean() < 0.05


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused_by_name(name):
    data, message = BAD[name]
    with pytest.raises(InvalidImage, match=message):
        prepare(data)


# In a process of its own: memory that an earlier test freed would be reused and not counted.
MEASURE = """
import contextlib, json, sys
from pathlib import Path
from PIL import Image

from ensembles.steps.decode_image import PIXEL_LIMIT, InvalidImage, Transform, prepare

Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT
transform = Transform(json.loads(sys.argv[1]))

def read(field):
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index(f"{field}:") + 1]) * 1024

image = sys.stdin.buffer.read()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = read("VmRSS")
with contextlib.suppress(InvalidImage):
    prepare(image, transform)
print((read("VmHWM") - before) / 1e6)
"""


def _peak_mb(data: bytes) -> float:
    """How many MB decoding adds to a process's memory at its peak."""
    command = [sys.executable, "-c", MEASURE, json.dumps(DOCUMENT)]
    run = subprocess.run(command, input=data, capture_output=True, check=True)
    return float(run.stdout)


@pytest.mark.parametrize("name", ["50 megapixels", "bomb", "webp bomb"])
def test_a_bomb_takes_no_memory(name):
    assert _peak_mb(BAD[name][0]) < 20


@pytest.mark.parametrize(("file_format", "limit_mb"), [("JPEG", 240), ("PNG", 240), ("WEBP", 460)])
def test_the_largest_image_takes_a_known_amount(file_format, limit_mb):
    # 75 MB are the pixels themselves.
    assert 60 < _peak_mb(encoded(Image.new("RGB", (5000, 5000), "teal"), file_format)) < limit_mb


def _as_image(values) -> Image.Image:
    return Image.fromarray(np.asarray(values, dtype=np.uint8))


def _run(image, *operations) -> np.ndarray:
    return Transform({"height": 1, "width": 1, "operations": operations})(image)


def test_a_small_image_is_cropped_with_black_around_it():
    """As in transformers: the larger half of an odd remainder comes first."""
    white = _as_image(np.full((2, 4, 3), 255))
    actual = _run(white, {"op": "crop", "height": 5, "width": 2})
    assert actual.shape == (3, 5, 2)
    assert actual[0].tolist() == [[0, 0], [0, 0], [255, 255], [255, 255], [0, 0]]


def test_a_crop_by_fractions_is_measured_on_the_shorter_side():
    actual = _run(colours((100, 50)), {"op": "crop_part", "height": 0.5, "width": 0.875})
    assert actual.shape == (3, 25, 43)


def test_values_are_rescaled_offset_normalised_and_flipped():
    pixel = _as_image([[[0, 127, 255]]])
    to_minus_one_to_one = {"op": "rescale", "factor": 1 / 127.5, "offset": -1.0}
    assert _run(pixel, to_minus_one_to_one)[:, 0, 0] == pytest.approx([-1, -1 / 255, 1])
    by_channel = {"op": "normalize", "mean": [0, 127, 5], "std": [1, 2, 50]}
    assert _run(pixel, by_channel)[:, 0, 0].tolist() == [0, 0, 5]
    assert _run(pixel, {"op": "flip"})[:, 0, 0].tolist() == [255, 127, 0]


@pytest.mark.parametrize("resample", range(6))
def test_every_filter_is_pillows(resample):
    image = colours((50, 40))
    actual = _run(image, {"op": "resize", "height": 20, "width": 10, "resample": resample})
    expected = np.asarray(image.resize((10, 20), Image.Resampling(resample)))
    assert np.array_equal(actual, expected.transpose(2, 0, 1))


def test_an_unknown_operation_is_an_error():
    with pytest.raises(ValueError, match="unknown operation 'blur': use one of grey, onto_white, "):
        Transform({**DOCUMENT, "operations": [{"op": "blur"}]})


def test_the_error_says_what_size_the_model_looks_at():
    small = Transform({**DOCUMENT, "height": 32, "width": 48})
    with pytest.raises(InvalidImage, match="the model looks at 48x32"):
        decode_image.prepare(BAD["bomb"][0], small)


def test_any_cut_is_refused_or_decoded():
    """No prefix of a file gives anything but an image or an error for its sender."""
    for file_format in ("JPEG", "PNG", "WEBP"):
        whole = encoded(colours(), file_format)
        for length in range(0, len(whole), 37):
            with pytest.raises(InvalidImage):
                prepare(whole[:length])


def test_any_damage_is_refused_or_decoded():
    random = np.random.default_rng(7)
    for file_format in ("JPEG", "PNG", "WEBP"):
        whole = encoded(colours(), file_format)
        for _ in range(100):
            damaged = np.frombuffer(whole, np.uint8).copy()
            damaged[random.integers(0, len(damaged), 8)] = random.integers(0, 256, 8)
            try:
                pixels = prepare(damaged.tobytes())
            except InvalidImage:
                continue
            assert pixels.shape == (3, 224, 224)


class _Triton:
    """The part of ``triton_python_backend_utils`` that the step uses."""

    class TritonError(Exception):
        INVALID_ARG = 3

    @staticmethod
    def get_input_tensor_by_name(request, name):
        return request[name]

    @staticmethod
    def Tensor(name, values):  # noqa: N802 - Triton's name
        return name, values

    @staticmethod
    def InferenceResponse(tensors=(), error=None):  # noqa: N802 - Triton's name
        return SimpleNamespace(tensors=dict(tensors), error=error)


def _request(*files):
    values = np.array([[file] for file in files], dtype=object)
    return {"image": SimpleNamespace(as_numpy=lambda: values)}


def test_a_bad_image_fails_only_its_own_request(monkeypatch, tmp_path, upright):
    monkeypatch.setattr(decode_image, "pb_utils", _Triton)
    good = encoded(colours(), "PNG")
    model = _model(tmp_path)
    first, bad, last = model.execute([_request(good), _request(good, b""), _request(good, good)])
    assert np.array_equal(first.tensors["pixels"][0], upright)
    assert last.tensors["pixels"].shape == (2, 3, 224, 224)
    text, code = bad.error.args
    assert text.startswith("[tidegate:invalid_input row=1] the image is empty")
    assert code == _Triton.TritonError.INVALID_ARG
