"""The photos are real files of the sizes that people attach, in one order."""

import io

import pytest
from PIL import Image

from loadtests import photos as module
from loadtests.photos import photos
from loadtests.preflight import CannotStart


def test_the_photos_are_pictures_of_many_sizes():
    files = photos()
    assert files == photos()
    assert len(set(files)) == len(files) >= 20
    sizes = sorted(map(len, files))
    assert sizes[0] >= module.LEAST_BYTES
    assert sizes[-1] > 4 * sizes[len(sizes) // 2]
    for file in files:
        with Image.open(io.BytesIO(file)) as image:
            assert min(image.size) > 100


def test_without_the_packages_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "package_folder", lambda name: None)
    with pytest.raises(CannotStart, match="pip install scikit-image scikit-learn"):
        photos()
