"""Decode images and prepare them for the engine (a step that runs inside Triton).

Input ``image`` BYTES [n, 1], each a whole JPEG, PNG or WebP file; output ``pixels`` FP32
[n, channels, height, width]: three, or one of a model that sees grey.

An image is put upright by its EXIF and made RGB: alpha is dropped, an embedded colour profile is
not applied, and CMYK is converted without one. What then follows is the model's own transform for
evaluation, in ``preprocess.json`` beside this module:
``{"height": 224, "width": 224, "operations": [{"op": "crop", "height": 224, "width": 224}, ...]}``,
whose operations are the functions below. ``"channels": 1`` stands beside them where the first is
``grey``.

An image is refused by its header, before memory is taken for its pixels: by its format, number of
frames, number of pixels or shape. Each limit is below, and its error says what to send instead.
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

# The gateway shows a client only texts that begin with such a marker, and names the row as the
# client counts rows: a batch here may be a part of the client's.
INVALID = "[tidegate:invalid_input row={}] "
FORMATS = ("JPEG", "PNG", "WEBP")
PICTURE_LIMIT_BYTES = 16 << 20
# Above the 24.5 megapixels of today's phones. Measured: decoding takes 8 bytes a pixel (a JPEG that
# is turned) to 17 (a WebP), so at most 430 MB: an instance decodes one image at a time.
PIXEL_LIMIT = 25_000_000
SHORTEST_SIDE = 16
# Most models see the middle square only: of a longer strip less than a twentieth.
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
    """What ``preprocess.json`` says; ``channels``, ``height`` and ``width`` are of its result.

    Raises ValueError for an operation that is not one of ``OPERATIONS``.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.height, self.width = int(document["height"]), int(document["width"])
        self.channels = int(document.get("channels", 3))
        self._operations = []
        for settings in document["operations"]:
            name = settings["op"]
            if name not in OPERATIONS:
                raise ValueError(f"there is no operation {name!r}: {', '.join(OPERATIONS)} are")
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


def _values(image: Any, kind: Any = None) -> np.ndarray:
    """[height, width, channels] of an image or of such an array."""
    values = np.asarray(image, dtype=kind)
    return values[..., None] if values.ndim == 2 else values  # Pillow gives grey no axis of its own


def grey(image: Image.Image) -> Image.Image:
    """One channel, by the weights of ITU-R 601-2."""
    return image.convert("L")


def resize(image: Image.Image, height: int, width: int, resample: int) -> Image.Image:
    """To just this size, with one of Pillow's filters, by its number; always antialiased."""
    return image.resize((width, height), Image.Resampling(resample))


def resize_shorter(image: Image.Image, edge: int, resample: int) -> Image.Image:
    """The shorter side to ``edge`` pixels, the other in proportion, cut to a whole number."""
    shorter = min(image.size)
    width, height = (int(edge * side / shorter) for side in image.size)
    return resize(image, height, width, resample)


def crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle; black surrounds an image that is smaller."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def crop_part(image: Image.Image, height: float, width: float) -> Image.Image:
    """The middle, measured in parts of the shorter side."""
    shorter = min(image.size)
    return crop(image, int(height * shorter), int(width * shorter))


def rescale(image: Any, factor: float, offset: float = 0.0) -> np.ndarray:
    """value * factor + offset; rounded as transformers does, which multiplies in FP64."""
    scaled = (_values(image, np.float64) * factor).astype(np.float32)
    return scaled + np.float32(offset)


def normalize(image: Any, mean: list[float], std: list[float]) -> np.ndarray:
    """(value - mean) / std, each a number for every channel."""
    pixels = _values(image, np.float32)
    means, deviations = (np.array(each, dtype=np.float32) for each in (mean, std))
    return np.asarray((pixels - means) / deviations)


def flip(image: Any) -> np.ndarray:
    """RGB to BGR."""
    return _values(image)[..., ::-1]


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    operation.__name__: operation
    for operation in (grey, resize, resize_shorter, crop, crop_part, rescale, normalize, flip)
}


def prepare(picture: bytes, transform: Transform) -> np.ndarray:
    """Pixels FP32 [channels, height, width] of an image; InvalidImage if it cannot be used."""
    # One name throughout: each stage frees the one before it.
    image = _opened(picture, transform.size)
    _check(image, transform.size)
    _load(image)
    turn = _turn(image)
    image = _rgb(image)
    if turn is not None:
        image = image.transpose(turn)
    return transform(image)


def _opened(picture: bytes, seen: str) -> Image.Image:
    """The image with only its header read; ``seen`` is the size that the model looks at."""
    if not picture:
        raise InvalidImage("is empty: send the bytes of a JPEG, PNG or WebP file")
    if len(picture) > PICTURE_LIMIT_BYTES:
        raise InvalidImage(f"has {len(picture)} bytes: send at most {PICTURE_LIMIT_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(picture), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_many_pixels(seen) from None
    except UnidentifiedImageError:
        raise InvalidImage(
            "is not a whole JPEG, PNG or WebP file, whatever its name says: convert it to one"
        ) from None
    except Exception:  # Pillow raises many kinds for a header that is broken
        raise _broken() from None


def _check(image: Image.Image, seen: str) -> None:
    width, height = image.size
    shorter, longer = sorted(image.size)
    if width * height > PIXEL_LIMIT:
        raise _too_many_pixels(seen)
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
    """Decode the pixels; this is where a file that is cut off shows."""
    try:
        image.load()
    except MemoryError:
        raise
    except Exception:  # Pillow raises many kinds for data that is broken
        raise _broken() from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # 16-bit grey: keep the high byte, as is done for 16-bit colour. convert() would clip.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to put the image upright, read once its pixels are loaded: PNG may end with EXIF."""
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF around a good image, which viewers show as it lies
        return None


def _too_many_pixels(seen: str) -> InvalidImage:
    return InvalidImage(
        f"has more than {PIXEL_LIMIT // 10**6} million pixels: send a smaller one "
        f"(the model looks at {seen})"
    )


def _broken() -> InvalidImage:
    return InvalidImage("is cut off or damaged: it cannot be decoded, send the whole file")


class TritonPythonModel:
    """Triton's entry point: requests in, pixels out. A bad image fails its own request only."""

    def initialize(self, args: dict[str, str]) -> None:
        Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT
        folder = Path(args["model_repository"]) / args["model_version"]
        document = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
        self._transform = Transform(document)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        seen = self._transform
        shape = (len(images), seen.channels, seen.height, seen.width)
        pixels = np.empty(shape, dtype=np.float32)
        for index, picture in enumerate(images):
            try:
                pixels[index] = prepare(picture, self._transform)
            except InvalidImage as error:
                text = f"{INVALID.format(index)}the image {error}"
                failure = pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG)
                return pb_utils.InferenceResponse(error=failure)
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", pixels)])
