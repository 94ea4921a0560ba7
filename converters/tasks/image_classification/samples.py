"""Photographs as people send them: other formats, sizes, colour modes and orientations."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from converters.tasks.image_classification.photos import PHOTOS, photo_file

# These are sent in all the ways below, the others unchanged and as two JPEGs.
VARIED = ("chelsea", "coffee", "flower")
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,  # the tag says how to turn back: by 270
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class Sample:
    """One image file. ``reference_data``, where set, is what the original gets instead of ``data``;
    ``duplicate`` names the sample that must have exactly the same scores."""

    name: str
    data: bytes
    reference_data: bytes = b""
    duplicate: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the sample."""
        named = f"{self.name}\0{self.duplicate}\0{len(self.data)}\0".encode()
        return hashlib.sha256(named + self.data + self.reference_data).hexdigest()


def image_samples() -> list[Sample]:
    """About 120 images, each with a unique name that is also a valid file name."""
    samples = []
    for name in PHOTOS:
        samples.append(Sample(name, photo_file(name).read_bytes()))
        with Image.open(photo_file(name)) as image:
            photo = image.convert("RGB")
        samples += [
            Sample(f"{name}-jpeg", encoded(photo, "JPEG", quality=90)),
            Sample(f"{name}-half", encoded(_scaled(photo, 0.5), "JPEG", quality=75)),
        ]
        if name in VARIED:
            samples += variations(name, photo)
    return samples


def few_image_samples() -> list[Sample]:
    """Every photo unchanged, and one in all the ways: for slower models."""
    samples = [Sample(name, photo_file(name).read_bytes()) for name in PHOTOS]
    with Image.open(photo_file(VARIED[0])) as image:
        photo = image.convert("RGB")
    return [*samples, *variations(VARIED[0], photo)]


def variations(name: str, photo: Image.Image) -> list[Sample]:
    """An RGB photo in all modes, formats, orientations and shapes."""
    groups = (_modes, _formats, _turned, _shapes)
    return [sample for group in groups for sample in group(name, photo)]


def reference_data_for(data: bytes) -> bytes:
    """The high bytes of a 16-bit grey image, b"" for any other. The original would clip 16-bit
    grey, which is a mistake in reading the file and not the model's, so it gets these instead."""
    with Image.open(io.BytesIO(data)) as image:
        if not image.mode.startswith("I"):
            return b""
        high = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return encoded(high, "PNG", exif=image.getexif())


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """The image as a file in this format."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def grey_16_bit(photo: Image.Image) -> bytes:
    """A PNG of 16 bits per pixel, whose high bytes are the photo in grey."""
    grey = np.asarray(photo.convert("L")).astype(np.uint16)
    return encoded(Image.fromarray(grey * 256 + 77), "PNG")


def _modes(name: str, photo: Image.Image) -> Iterator[Sample]:
    grey = encoded(photo.convert("L"), "PNG")
    transparent = photo.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(photo.size))
    yield Sample(f"{name}-rgb", encoded(photo, "PNG"))
    yield Sample(f"{name}-grey", grey)
    yield Sample(
        f"{name}-grey16", grey_16_bit(photo), reference_data=grey, duplicate=f"{name}-grey"
    )
    yield Sample(f"{name}-alpha", encoded(transparent, "PNG"), duplicate=f"{name}-rgb")
    yield Sample(f"{name}-grey-alpha", encoded(transparent.convert("LA"), "PNG"))
    yield Sample(f"{name}-palette", encoded(photo.quantize(64), "PNG", transparency=0))
    yield Sample(f"{name}-bilevel", encoded(photo.convert("1"), "PNG"))
    yield Sample(f"{name}-cmyk", encoded(photo.convert("CMYK"), "JPEG", quality=95))
    yield Sample(f"{name}-grey-jpeg", encoded(photo.convert("L"), "JPEG", quality=90))


def _formats(name: str, photo: Image.Image) -> Iterator[Sample]:
    lossless = encoded(photo, "WEBP", lossless=True, method=1)
    yield Sample(f"{name}-webp", encoded(photo, "WEBP", quality=80, method=1))
    yield Sample(f"{name}-webp-lossless", lossless, duplicate=f"{name}-rgb")
    yield Sample(f"{name}-progressive", encoded(photo, "JPEG", quality=85, progressive=True))
    yield Sample(f"{name}-444", encoded(photo, "JPEG", quality=85, subsampling=0))


def _turned(name: str, photo: Image.Image) -> Iterator[Sample]:
    for tag, turn in _TRANSPOSITIONS.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = tag
        turned = photo.transpose(turn)
        png = encoded(turned, "PNG", exif=exif)
        yield Sample(f"{name}-exif{tag}", png, duplicate=f"{name}-rgb")
        yield Sample(f"{name}-exif{tag}-jpeg", encoded(turned, "JPEG", quality=90, exif=exif))


def _shapes(name: str, photo: Image.Image) -> Iterator[Sample]:
    width, height = photo.size
    yield Sample(f"{name}-large", encoded(_scaled(photo, 4), "JPEG", quality=85))
    yield Sample(f"{name}-small", encoded(_scaled(photo, 0.1), "PNG"))
    yield Sample(f"{name}-wide", encoded(photo.resize((width * 3, height // 2)), "PNG"))
    yield Sample(f"{name}-tall", encoded(photo.resize((width // 4, height * 3)), "PNG"))


def _scaled(photo: Image.Image, factor: float) -> Image.Image:
    return photo.resize((int(photo.width * factor), int(photo.height * factor)))
