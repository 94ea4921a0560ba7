"""The photos are real, named, and sent in all the ways that people send them."""

import io
from importlib.machinery import PathFinder

import pytest
from PIL import Image

from converters.errors import SourceMissing
from converters.tasks.image_classification import photos
from converters.tasks.image_classification.photos import KNOWN, PHOTOS, photo_file
from converters.tasks.image_classification.samples import VARIED, image_samples


@pytest.fixture(scope="module")
def samples():
    return {sample.name: sample for sample in image_samples()}


def test_every_photo_is_installed():
    assert len(PHOTOS) >= 15
    assert all(photo_file(name).stat().st_size > 10_000 for name in PHOTOS)
    assert set(KNOWN) <= set(PHOTOS)


def test_a_package_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr(photos, "package_folder", lambda name: None)
    with pytest.raises(SourceMissing, match="scikit-image, which is not installed: pip install"):
        photo_file("coffee")
    assert PathFinder.find_spec("skimage") is not None


def test_names_are_unique_and_duplicates_exist(samples):
    assert len(samples) == len(image_samples())
    duplicates = {sample.duplicate for sample in samples.values() if sample.duplicate}
    assert duplicates <= set(samples)
    assert all("/" not in name for name in samples)


def test_every_kind_of_file_is_among_them(samples):
    seen = set()
    for sample in samples.values():
        with Image.open(io.BytesIO(sample.data)) as image:
            seen |= {image.format, image.mode, image.getexif().get(0x0112)}
    assert {"JPEG", "PNG", "WEBP"} <= seen
    assert {"RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"} <= seen
    assert set(range(2, 9)) <= seen
    assert len(VARIED) >= 3
