"""Real photographs, from the packages ``scikit-image`` and ``scikit-learn``.

None of them is copied into this repository; they are read where pip installed them.
"""

from pathlib import Path

from converters.errors import SourceMissing
from modelspec.packages import package_folder

_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}

PHOTOS = {
    "astronaut": "skimage/astronaut.png",
    "brick": "skimage/brick.png",
    "camera": "skimage/camera.png",
    "cell": "skimage/cell.png",
    "chelsea": "skimage/chelsea.png",
    "china": "sklearn/china.jpg",
    "clock": "skimage/clock_motion.png",
    "coffee": "skimage/coffee.png",
    "coins": "skimage/coins.png",
    "flower": "sklearn/flower.jpg",
    "grass": "skimage/grass.png",
    "gravel": "skimage/gravel.png",
    "horse": "skimage/horse.png",
    "hubble": "skimage/hubble_deep_field.jpg",
    "moon": "skimage/moon.png",
    "motorcycle": "skimage/motorcycle_left.png",
    "page": "skimage/page.png",
    "retina": "skimage/retina.jpg",
    "rocket": "skimage/rocket.jpg",
}
# What a person would call them: the ImageNet classes that fit the photo.
KNOWN = {
    "camera": {"tripod"},
    "chelsea": {"tabby", "tiger cat", "Egyptian cat"},
    "china": {"palace"},
    "coffee": {"espresso", "cup", "coffee mug"},
    "flower": {"daisy"},
    "motorcycle": {"moped", "motor scooter"},
    "rocket": {"missile", "projectile"},
}


def photo_file(name: str) -> Path:
    """The file of one of ``PHOTOS``; SourceMissing says how to install it."""
    package, file = PHOTOS[name].split("/")
    folder = package_folder(package)
    path = folder / _FOLDERS[package] / file if folder else None
    if path is None or not path.is_file():
        raise SourceMissing(
            f"the photo {file} is in the package {_DISTRIBUTIONS[package]}, which is not "
            "installed: pip install 'tidegate[convert]'"
        )
    return path
