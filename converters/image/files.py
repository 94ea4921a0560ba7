"""Pictures that a user brings in a folder, as samples."""

import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from converters.errors import SourceMissing, SourceRefused
from converters.image.samples import Sample, as_asked, variations

# A proof asks the original about each: more would take long and prove no more.
PICTURE_LIMIT = 100
# What the step ``decode_image`` takes of anybody (docs/image-classification.md).
FORMATS = ("JPEG", "PNG", "WEBP")
FILE_LIMIT_BYTES = 16 << 20
PIXEL_LIMIT = 25_000_000
SHORTEST_SIDE, LONGEST_TO_SHORTEST = 16, 20
# Made wide, tall and small it still is within these limits.
VARIED_SIZE = (480, 360)


def read_images(folder: Path) -> list[Sample]:
    """The images of the folder, at most ``PICTURE_LIMIT``, then the first in every format, mode
    and orientation. SourceMissing or SourceRefused names the file that is wrong."""
    if not folder.is_dir():
        raise SourceMissing(f"{folder} is not a folder: give one that holds images")
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not files:
        raise SourceRefused(f"{folder} holds no sample: put JPEG, PNG or WebP images in it")
    samples = [_sample(path) for path in files[:PICTURE_LIMIT]]
    with Image.open(files[0]) as image:
        photo = ImageOps.fit(image.convert("RGB"), VARIED_SIZE)
    return [*samples, *variations("varied", photo)]


def _sample(path: Path) -> Sample:
    reason = _unfit(path)
    if reason:
        raise SourceRefused(
            f"{path} {reason}: a sample is a still JPEG, PNG or WebP image of "
            f"{SHORTEST_SIDE}x{SHORTEST_SIDE} to {PIXEL_LIMIT // 10**6} million pixels, one side "
            f"at most {LONGEST_TO_SHORTEST} times the other, at most {FILE_LIMIT_BYTES >> 20} MiB"
        )
    data = path.read_bytes()
    name = path.name.encode("utf-8", "replace").decode()
    return Sample(name, data, asked=as_asked(data))


def _unfit(path: Path) -> str:
    """Why the pipeline would refuse this file; empty if it takes it."""
    if not path.is_file():
        return "is not a file"
    if path.stat().st_size > FILE_LIMIT_BYTES:
        return f"has {path.stat().st_size} bytes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
                return _unfit_shape(image) or _undecodable(image)
    except Exception as error:  # Pillow raises many kinds for a file that is no image
        return f"cannot be read as an image ({type(error).__name__})"


def _unfit_shape(image: Image.Image) -> str:
    shorter, longer = sorted(image.size)
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return "is animated"
    strip = shorter < SHORTEST_SIDE or longer > LONGEST_TO_SHORTEST * shorter
    if strip or shorter * longer > PIXEL_LIMIT:
        return f"is {image.width}x{image.height} pixels"
    return ""


def _undecodable(image: Image.Image) -> str:
    image.load()
    return ""
