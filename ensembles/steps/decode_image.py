"""Decode images and prepare them for the engine (a step that runs inside Triton).

Input ``image`` BYTES [n, 1], each a whole JPEG, PNG or WebP file; output ``pixels`` FP32
[n, channels, height, width]: three channels, or one for a model of grey images.

An image is turned upright by its EXIF and converted to RGB: alpha is dropped, an embedded colour
profile is not applied, and CMYK is converted without one. Then comes the model's own evaluation
transform, from ``preprocess.json`` beside this module:
``{"height": 224, "width": 224, "operations": [{"op": "crop", "height": 224, "width": 224}, ...]}``,
whose operations are the functions below. It also has ``"channels": 1`` where the first operation is
``grey``.

An image is refused by its header, before memory is allocated for its pixels: by its format, number
of frames, number of pixels or shape. Each limit is below, and its error says what to send instead.
"""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

try:  # exists only inside Triton's Python stub
    import triton_python_backend_utils as pb_utils
except ImportError:
    pb_utils = None

# The gateway forwards to a client only messages that begin with this marker, and replaces the row
# by the client's own: a batch here may be a part of the client's.
INVALID = "[tidegate:invalid_input row={}] "
FORMATS = ("JPEG", "PNG", "WEBP")
FILE_LIMIT_BYTES = 16 << 20
# Above the 24.5 megapixels of today's phones. Measured: decoding takes from 8 bytes per pixel (a
# JPEG that is turned) to 17 (a WebP), so at most 430 MB: an instance decodes one image at a time.
PIXEL_LIMIT = 25_000_000
SHORTEST_SIDE = 16
# Most models see only the middle square, which is less than a twentieth of a longer strip.
LONGEST_TO_SHORTEST = 20

ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class InvalidImage(ValueError):
    """The client's image cannot be used; the message says what to do."""


class Transform:
    """The transform in ``preprocess.json``; ``channels``, ``height`` and ``width`` are its
    result's.

    Raises ValueError for an operation that is not one of ``OPERATIONS``.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.height, self.width = int(document["height"]), int(document["width"])
        self.channels = int(document.get("channels", 3))
        self._operations = []
        for settings in document["operations"]:
            name = settings["op"]
            if name not in OPERATIONS:
                raise ValueError(f"unknown operation {name!r}: use one of {', '.join(OPERATIONS)}")
            arguments = {key: value for key, value in settings.items() if key != "op"}
            self._operations.append((OPERATIONS[name], arguments))

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Pixels FP32 [channels, height, width] of an upright RGB image."""
        pixels: Any = image
        for operation, arguments in self._operations:
            pixels = operation(pixels, **arguments)
        return _values(pixels, np.float32).transpose(2, 0, 1)


def _values(image: Any, dtype: Any = None) -> np.ndarray:
    """An image or an array as an array [height, width, channels]."""
    values = np.asarray(image, dtype=dtype)
    return values[..., None] if values.ndim == 2 else values  # Pillow gives grey no axis of its own


def grey(image: Image.Image) -> Image.Image:
    """To one channel, with the weights of ITU-R 601-2."""
    return image.convert("L")


def onto_white(image: Image.Image) -> Image.Image:
    """The pixels of the colour that a PNG names as transparent become white, as transformers'
    ``do_convert_rgb`` has it; Pillow keeps the name of that colour through the conversion to
    RGB."""
    if image.info.get("transparency") is None:
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def resize(image: Image.Image, height: int, width: int, resample: int) -> Image.Image:
    """To exactly this size, with the Pillow filter of this number; always antialiased."""
    return image.resize((width, height), Image.Resampling(resample))


def resize_shorter(image: Image.Image, edge: int, resample: int) -> Image.Image:
    """The shorter side to ``edge`` pixels, the other in proportion, rounded down."""
    shorter = min(image.size)
    width, height = (int(edge * side / shorter) for side in image.size)
    return resize(image, height, width, resample)


def crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle; a smaller image is padded with black."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def crop_part(image: Image.Image, height: float, width: float) -> Image.Image:
    """The middle, its sides given as fractions of the shorter side."""
    shorter = min(image.size)
    return crop(image, int(height * shorter), int(width * shorter))


def rescale(image: Any, factor: float, offset: float = 0.0) -> np.ndarray:
    """value * factor + offset; rounded as in transformers, which multiplies in FP64."""
    scaled = (_values(image, np.float64) * factor).astype(np.float32)
    return scaled + np.float32(offset)


def normalize(image: Any, mean: list[float], std: list[float]) -> np.ndarray:
    """(value - mean) / std, with a number for each channel."""
    pixels = _values(image, np.float32)
    means, deviations = np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32)
    return np.asarray((pixels - means) / deviations)


def flip(image: Any) -> np.ndarray:
    """RGB to BGR."""
    return _values(image)[..., ::-1]


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    operation.__name__: operation
    for operation in (
        grey,
        onto_white,
        resize,
        resize_shorter,
        crop,
        crop_part,
        rescale,
        normalize,
        flip,
    )
}


def prepare(data: bytes, transform: Transform) -> np.ndarray:
    """Pixels FP32 [channels, height, width] of an image file; InvalidImage if it cannot be used."""
    # One name throughout, so that each stage frees the image of the one before it.
    image = _open(data, transform.size)
    _check(image, transform.size)
    _load(image)
    turn = _turn(image)
    image = _rgb(image)
    if turn is not None:
        image = image.transpose(turn)
    return transform(image)


def _open(data: bytes, model_size: str) -> Image.Image:
    """The image with only its header read; ``model_size`` is the size that the model sees."""
    if not data:
        raise InvalidImage("is empty: send the bytes of a JPEG, PNG or WebP file")
    if len(data) > FILE_LIMIT_BYTES:
        raise InvalidImage(f"has {len(data)} bytes: send at most {FILE_LIMIT_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_many_pixels(model_size) from None
    except UnidentifiedImageError:
        raise InvalidImage(
            "is not a whole JPEG, PNG or WebP file, whatever its name says: convert it to one"
        ) from None
    except Exception:  # Pillow raises many types for a broken header
        raise _damaged() from None


def _check(image: Image.Image, model_size: str) -> None:
    width, height = image.size
    shorter, longer = sorted(image.size)
    if width * height > PIXEL_LIMIT:
        raise _too_many_pixels(model_size)
    # A phone's JPEG may carry further images (MPO); the first is the photo.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise InvalidImage("is animated: send one frame of it as a still image")
    if shorter < SHORTEST_SIDE:
        raise InvalidImage(
            f"is {width}x{height} pixels: send one of at least {SHORTEST_SIDE} on each side"
        )
    if longer > LONGEST_TO_SHORTEST * shorter:
        raise InvalidImage(
            f"is {width}x{height} pixels, a strip of which the model would see only the middle: "
            f"crop it so that one side is at most {LONGEST_TO_SHORTEST} times the other"
        )


def _load(image: Image.Image) -> None:
    """Decode the pixels; this is where a truncated file fails."""
    try:
        image.load()
    except MemoryError:
        raise
    except Exception:  # Pillow raises many types for broken data
        raise _damaged() from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # 16-bit grey: keep the high byte, as Pillow does for 16-bit colour. convert() would clip.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn the image upright. Read after the pixels are loaded: a PNG may end with EXIF."""
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF in a good image, which viewers show unturned
        return None


def _too_many_pixels(model_size: str) -> InvalidImage:
    return InvalidImage(
        f"has more than {PIXEL_LIMIT // 10**6} million pixels: send a smaller one "
        f"(the model looks at {model_size})"
    )


def _damaged() -> InvalidImage:
    return InvalidImage("is cut off or damaged: it cannot be decoded, send the whole file")


class TritonPythonModel:
    """Triton's entry point: requests in, pixels out. A bad image fails only its own request."""

    def initialize(self, args: dict[str, str]) -> None:
        Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT
        folder = Path(args["model_repository"]) / args["model_version"]
        document = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
        self._transform = Transform(document)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        transform = self._transform
        shape = (len(images), transform.channels, transform.height, transform.width)
        pixels = np.empty(shape, dtype=np.float32)
        for index, image in enumerate(images):
            try:
                pixels[index] = prepare(image, transform)
            except InvalidImage as error:
                message = f"{INVALID.format(index)}the image {error}"
                failure = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
                return pb_utils.InferenceResponse(error=failure)
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", pixels)])
