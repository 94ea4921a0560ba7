"""A user's own images: read, varied, and refused by name when the pipeline would refuse them."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from converters.errors import SourceMissing, SourceRefused
from converters.tasks.image_classification.sample_files import IMAGE_LIMIT, read_images
from converters.tasks.image_classification.samples import grey_16_bit
from ensembles.steps.decode_image import Transform, prepare
from tests.ensembles.images import bad_images, colours, encoded

BAD = bad_images()
REFUSED = {
    "empty": "cannot be read as an image",
    "text called .jpg": "cannot be read as an image",
    "gif": "cannot be read as an image",
    "truncated png": "cannot be read as an image",
    "animated webp": "is animated",
    "1x1": "is 1x1 pixels",
    "strip": "is 16x400 pixels",
    "50 megapixels": "is 8660x5774 pixels",
    "bomb": "cannot be read as an image",
    "too many bytes": "bytes",
}


def test_the_users_images_come_first_and_one_is_sent_in_every_way(tmp_path):
    (tmp_path / "b.png").write_bytes(encoded(colours(), "PNG"))
    (tmp_path / "a ü.jpeg").write_bytes(encoded(colours((40, 300)), "JPEG"))
    (tmp_path / ".DS_Store").write_bytes(b"not an image")
    samples = read_images(tmp_path)
    assert [sample.name for sample in samples[:2]] == ["a ü.jpeg", "b.png"]
    assert samples[1].data == (tmp_path / "b.png").read_bytes()
    names = [sample.name for sample in samples]
    assert len(names) == len(set(names)) > 30
    assert {sample.duplicate for sample in samples if sample.duplicate} <= set(names)


def test_the_step_takes_every_sample(tmp_path):
    (tmp_path / "tall.png").write_bytes(encoded(colours((16, 320)), "PNG"))
    resize = {"op": "resize", "height": 8, "width": 8, "resample": 2}
    step = Transform({"height": 8, "width": 8, "operations": [resize]})
    samples = read_images(tmp_path)
    assert all(prepare(sample.data, step).shape == (3, 8, 8) for sample in samples)
    assert min(len(sample.data) for sample in samples) < 16 << 10


def test_the_original_gets_the_high_bytes_of_16_bit_grey(tmp_path):
    (tmp_path / "deep.png").write_bytes(grey_16_bit(colours()))
    (deep, *_) = read_images(tmp_path)
    with Image.open(io.BytesIO(deep.reference_data)) as shown:
        assert shown.mode == "L"
        assert np.array_equal(np.asarray(shown), np.asarray(colours().convert("L")))


def test_the_original_gets_turned_16_bit_grey_turned(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(io.BytesIO(grey_16_bit(colours()))) as image:
        image.save(tmp_path / "deep.png", exif=exif)
    (deep, *_) = read_images(tmp_path)
    with Image.open(io.BytesIO(deep.reference_data)) as shown:
        assert shown.getexif()[ExifTags.Base.Orientation] == 6


def test_at_most_a_hundred_are_read(tmp_path):
    image = encoded(colours(), "PNG")
    for number in range(IMAGE_LIMIT + 5):
        (tmp_path / f"{number:03}.png").write_bytes(image)
    users = [sample for sample in read_images(tmp_path) if sample.name.endswith(".png")]
    assert len(users) == IMAGE_LIMIT


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_not_such_an_image_is_refused_by_name(tmp_path, name):
    (tmp_path / "a.png").write_bytes(encoded(colours(), "PNG"))
    (tmp_path / "bad file").write_bytes(BAD[name][0])
    with pytest.raises(SourceRefused) as refused:
        read_images(tmp_path)
    assert f"{tmp_path}/bad file" in str(refused.value)
    assert REFUSED[name] in str(refused.value)
    assert "a sample is a still JPEG, PNG or WebP image" in str(refused.value)


def test_a_folder_within_is_refused(tmp_path):
    (tmp_path / "more").mkdir()
    with pytest.raises(SourceRefused, match="more is not a file"):
        read_images(tmp_path)


def test_an_empty_folder_and_a_file_are_refused(tmp_path):
    with pytest.raises(SourceRefused, match="has no samples: put JPEG, PNG or WebP"):
        read_images(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded(colours(), "PNG"))
    with pytest.raises(SourceMissing, match=r"a\.png is not a folder"):
        read_images(tmp_path / "a.png")
