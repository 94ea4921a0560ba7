"""The user's own sample images, from a folder."""

import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from converters.errors import SourceMissing, SourceRefused
from converters.tasks.image_classification.samples import Sample, reference_data_for, variations

# A proof runs the original on each: more would take long and prove no more.
IMAGE_LIMIT = 100
# The limits of the step ``decode_image`` (docs/image-classification.md).
FORMATS = ("JPEG", "PNG", "WEBP")
FILE_LIMIT_BYTES = 16 << 20
PIXEL_LIMIT = 25_000_000
SHORTEST_SIDE, LONGEST_TO_SHORTEST = 16, 20
# An image of this size is within these limits even when it is made wide, tall or small.
VARIED_SIZE = (480, 360)


def read_images(folder: Path) -> list[Sample]:
    """The images in the folder, at most ``IMAGE_LIMIT``, then the first of them in every format,
    mode and orientation. SourceMissing or SourceRefused names the file that is wrong."""
    if not folder.is_dir():
        raise SourceMissing(f"{folder} is not a folder: give one with images")
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not files:
        raise SourceRefused(f"{folder} has no samples: put JPEG, PNG or WebP images in it")
    samples = [_sample(path) for path in files[:IMAGE_LIMIT]]
    with Image.open(files[0]) as image:
        photo = ImageOps.fit(image.convert("RGB"), VARIED_SIZE)
    return [*samples, *variations("varied", photo)]


def _sample(path: Path) -> Sample:
    reason = _refusal(path)
    if reason:
        raise SourceRefused(
            f"{path} {reason}: a sample is a still JPEG, PNG or WebP image of "
            f"{SHORTEST_SIDE}x{SHORTEST_SIDE} to {PIXEL_LIMIT // 10**6} million pixels, one side "
            f"at most {LONGEST_TO_SHORTEST} times the other, at most {FILE_LIMIT_BYTES >> 20} MiB"
        )
    data = path.read_bytes()
    name = path.name.encode("utf-8", "replace").decode()
    return Sample(name, data, reference_data=reference_data_for(data))


def _refusal(path: Path) -> str:
    """Why the pipeline would refuse this file; "" if it would not."""
    if not path.is_file():
        return "is not a file"
    if path.stat().st_size > FILE_LIMIT_BYTES:
        return f"has {path.stat().st_size} bytes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
                reason = _shape_refusal(image)
                if not reason:
                    image.load()
                return reason
    except Exception as error:  # Pillow raises many types for a file that is not an image
        return f"cannot be read as an image ({type(error).__name__})"


def _shape_refusal(image: Image.Image) -> str:
    shorter, longer = sorted(image.size)
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return "is animated"
    too_narrow = shorter < SHORTEST_SIDE or longer > LONGEST_TO_SHORTEST * shorter
    if too_narrow or shorter * longer > PIXEL_LIMIT:
        return f"is {image.width}x{image.height} pixels"
    return ""
